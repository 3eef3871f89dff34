//! Looks at every state that a disk may hold after a power loss, and says what was lost.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::after_power_loss::{Effort, State, VolatileDisk, losses};
use super::job::{Shown, judge};
use super::recorder::{Event, Told};
use super::{Random, folder};

/// Tells states apart: a digest of each file. (Not a CRC-32: a record that ends with its own has
/// the same whatever is in it.)
type Key = Vec<(PathBuf, [u8; 32])>;

/// Digests of the files that states share, by where their bytes are. So many of them are kept.
type Digests = HashMap<usize, (Arc<Vec<u8>>, [u8; 32])>;
const DIGESTS: usize = 256;

/// Says what the store in a folder shows, and goes on with it to its expected end; or why not.
type Outcome<'a> = dyn Fn(&Path) -> Result<Shown, String> + 'a;

/// Looks at each different state once.
pub struct Checker<'a> {
    outcome: Box<Outcome<'a>>,
    /// The folder that the recorded paths begin with. States are put into others.
    root: &'a Path,
    effort: Effort,
    random: Random,
    seen: HashMap<Key, Result<Shown, String>>,
    digests: Digests,
    /// States looked at, those that were alike included.
    pub states: usize,
    /// Moments between two calls.
    pub moments: usize,
    /// Some of the states, to go on from, with what the owner knew.
    pub kept: Vec<(State, Told)>,
    folder: TempDir,
}

impl<'a> Checker<'a> {
    pub fn new(
        outcome: impl Fn(&Path) -> Result<Shown, String> + 'a,
        root: &'a Path,
        effort: Effort,
        seed: u64,
    ) -> Self {
        Self {
            outcome: Box::new(outcome),
            root,
            effort,
            random: Random(seed),
            seen: HashMap::new(),
            digests: HashMap::new(),
            states: 0,
            moments: 0,
            kept: Vec::new(),
            folder: folder(),
        }
    }

    /// How many states were different.
    pub fn different(&self) -> usize {
        self.seen.len()
    }

    /// Lets the power fail after each of the events from the `from`-th on.
    ///
    /// # Errors
    /// The first loss, with the events before it and the fates of the calls that were not durable.
    pub fn check(&mut self, events: &[Event], from: usize) -> Result<(), String> {
        let mut disk = VolatileDisk::default();
        let mut told = Told::default();
        for (index, event) in events.iter().enumerate() {
            disk.apply(event);
            if let Event::Told(now) = event {
                told = *now;
            }
            if index < from {
                continue;
            }
            self.moments += 1;
            for fates in losses(&disk.unsynced(), self.effort, &mut self.random) {
                let state = disk.state(&fates);
                self.check_state(&state, told).map_err(|loss| {
                    let last = &events[index.saturating_sub(8)..=index];
                    format!("{loss}\nafter {} events, the last {last:#?}\nwith {fates:?} of what was not durable, and {told:?}", index + 1)
                })?;
            }
        }
        Ok(())
    }

    fn check_state(&mut self, state: &State, told: Told) -> Result<(), String> {
        self.states += 1;
        let key: Key = state
            .iter()
            .map(|(path, bytes)| (path.clone(), digest(&mut self.digests, bytes)))
            .collect();
        let shown = match self.seen.get(&key) {
            Some(shown) => shown.clone(),
            None => {
                let shown = self.outcome(state);
                self.seen.insert(key, shown.clone());
                if self.random.below(8) == 0 {
                    self.kept.push((state.clone(), told));
                }
                shown
            }
        };
        judge(shown?, told)
    }

    /// What a state shows, if it can be gone on with to the expected end.
    fn outcome(&self, state: &State) -> Result<Shown, String> {
        let place = self.folder.path().join("state");
        put(state, self.root, &place);
        let shown = (self.outcome)(&place)?;
        fs::remove_dir_all(&place).unwrap();
        Ok(shown)
    }
}

fn digest(known: &mut Digests, bytes: &Arc<Vec<u8>>) -> [u8; 32] {
    if known.len() > DIGESTS {
        known.clear();
    }
    let place = Arc::as_ptr(bytes) as usize;
    let fresh = || (Arc::clone(bytes), Sha256::digest(&**bytes).into());
    known.entry(place).or_insert_with(fresh).1
}

/// Makes a state's files, in a new folder in place of the root.
pub fn put(state: &State, root: &Path, place: &Path) {
    let _ = fs::remove_dir_all(place);
    fs::create_dir(place).unwrap();
    for (path, bytes) in state {
        let path = place.join(path.strip_prefix(root).unwrap());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, &**bytes).unwrap();
    }
}
