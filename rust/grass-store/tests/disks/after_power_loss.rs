//! What a disk may hold after the power fails.
//!
//! Assumed of the disk and its file system, as POSIX has it and ext4 and XFS do it at their worst:
//! - The bytes and the length of a file are durable when a sync of it has returned, through whichever
//!   handle. Its name is not: names are durable when a sync of their folder has returned.
//! - A rename takes the old name away and gives the new one as one, or does neither.
//! - Until then, each write may be there whole, not at all, as zeros (the length grew, the bytes did not
//!   come), torn after any byte, or as any of its sectors of 512 bytes; each change of a length, and each
//!   name made, renamed or removed, may be there or not. All of that independently of each other, in
//!   one file and across files, except that what is there took effect in the order of the calls.
//! - A sector's bytes reach the disk in their order, so that a torn sector holds the first of them.
//! - After a sync that failed, what it should have made durable may never be, whatever later syncs say
//!   (Linux takes such pages for clean), until the same bytes are written again.
//! - What a sync has made durable stays as it is. A disk that lies about that can lose anything.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Random;
use super::recorder::{Event, FileNumber};

const SECTOR: u64 = 512;

/// The files that are there after a power loss, by path.
pub type State = BTreeMap<PathBuf, Arc<Vec<u8>>>;

/// What became of a call whose effect was not durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Gone,
    Whole,
    /// The file grew, but holds zeros where it did.
    Zeros,
    /// The first bytes are there; the file grew as for all of them, or only as far.
    Torn {
        kept: usize,
        grown: bool,
    },
    /// The sectors are there whose bits are set, the first one's being the lowest; after 64 of them
    /// again from the lowest.
    Sectors(u64),
}

/// A call whose effect is not durable.
#[derive(Debug, Clone, Copy)]
pub struct Unsynced {
    /// Where a write begins.
    offset: u64,
    /// How long a write is; 0 for other calls.
    bytes: usize,
}

/// How many states to look at.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Writes of at most so many bytes are torn after each of them.
    pub every_byte: usize,
    /// Random places to tear longer ones at, and random sets of sectors.
    pub places: usize,
    /// All subsets of at most so many calls.
    pub subsets: usize,
    /// States in which every call has a random fate.
    pub random: usize,
}

#[derive(Debug, Clone)]
enum Change {
    Write(u64, Arc<[u8]>),
    Length(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reached {
    Synced,
    Not,
    /// A sync of it failed.
    Lost,
}

#[derive(Debug, Clone, Default)]
struct File {
    /// What is durable, before the changes.
    base: Arc<Vec<u8>>,
    changes: Vec<(Change, Reached)>,
}

#[derive(Debug, Clone, Copy)]
enum Node {
    Folder,
    File(FileNumber),
}

#[derive(Debug, Clone)]
struct NameChange {
    removed: Option<PathBuf>,
    added: Option<(PathBuf, Node)>,
}

/// A disk with all that is not durable on it.
#[derive(Debug, Default)]
pub struct VolatileDisk {
    files: Vec<File>,
    /// Names as the running system sees them.
    live: BTreeMap<PathBuf, Node>,
    durable: BTreeMap<PathBuf, Node>,
    name_changes: Vec<NameChange>,
}

impl VolatileDisk {
    /// Does what the writer did.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::FoundFolder(path) => {
                self.live.insert(path.clone(), Node::Folder);
                self.durable.insert(path.clone(), Node::Folder);
            }
            Event::Found(path, number, bytes) => {
                self.file(*number).base = Arc::clone(bytes);
                self.live.insert(path.clone(), Node::File(*number));
                self.durable.insert(path.clone(), Node::File(*number));
            }
            Event::CreateFolder(path) => self.rename(None, Some((path, Node::Folder))),
            Event::Create(path, number) if *number < self.files.len() => {
                assert!(self.live.contains_key(path));
                self.change(*number, Change::Length(0));
            }
            Event::Create(path, number) => {
                self.file(*number);
                self.rename(None, Some((path, Node::File(*number))));
            }
            Event::Write(number, offset, bytes) => {
                self.change(*number, Change::Write(*offset, Arc::clone(bytes)));
            }
            Event::SetLength(number, length) => self.change(*number, Change::Length(*length)),
            Event::Sync(number) => self.file(*number).sync(),
            Event::SyncFailed(number) => self.file(*number).fail_to_sync(),
            Event::Rename(from, to) => {
                let node = self.live[from];
                self.rename(Some(from), Some((to, node)));
            }
            Event::Remove(path) => self.rename(Some(path), None),
            Event::SyncFolder(folder) => self.sync_folder(folder),
            Event::Open(..) | Event::Told(_) => {}
        }
    }

    fn file(&mut self, number: FileNumber) -> &mut File {
        if number == self.files.len() {
            self.files.push(File::default());
        }
        &mut self.files[number]
    }

    fn change(&mut self, number: FileNumber, change: Change) {
        self.file(number).changes.push((change, Reached::Not));
    }

    fn rename(&mut self, removed: Option<&PathBuf>, added: Option<(&PathBuf, Node)>) {
        let change = NameChange {
            removed: removed.cloned(),
            added: added.map(|(path, node)| (path.clone(), node)),
        };
        change.apply(&mut self.live);
        self.name_changes.push(change);
    }

    fn sync_folder(&mut self, folder: &Path) {
        let (now, later) = std::mem::take(&mut self.name_changes)
            .into_iter()
            .partition::<Vec<_>, _>(|change| change.folder() == Some(folder));
        self.name_changes = later;
        for change in now {
            change.apply(&mut self.durable);
        }
    }

    /// The calls whose effect is not durable: of each file, then of names.
    pub fn unsynced(&self) -> Vec<Unsynced> {
        let changes = self.files.iter().flat_map(|file| &file.changes);
        let of_files = changes.filter(|(_, reached)| *reached != Reached::Synced);
        let of_files = of_files.map(|(change, _)| match change {
            Change::Write(offset, bytes) => Unsynced {
                offset: *offset,
                bytes: bytes.len(),
            },
            Change::Length(_) => Unsynced {
                offset: 0,
                bytes: 0,
            },
        });
        let of_names = self.name_changes.iter().map(|_| Unsynced {
            offset: 0,
            bytes: 0,
        });
        of_files.chain(of_names).collect()
    }

    /// What is there after a power loss in which the unsynced calls had these fates.
    pub fn state(&self, fates: &[Fate]) -> State {
        let mut fates = fates.iter().copied();
        let files: Vec<_> = self
            .files
            .iter()
            .map(|file| file.after(&mut fates))
            .collect();
        let mut names = self.durable.clone();
        for change in &self.name_changes {
            if fates.next() != Some(Fate::Gone) {
                change.apply(&mut names);
            }
        }
        assert_eq!(fates.next(), None);
        let is_there = |path: &Path| {
            let folder = path.parent().unwrap();
            // The root of all is not recorded, and always there.
            names.contains_key(folder) || !self.live.contains_key(folder)
        };
        let files = names.iter().filter_map(|(path, node)| match node {
            Node::File(number) => is_there(path).then(|| (path.clone(), files[*number].clone())),
            Node::Folder => None,
        });
        files.collect()
    }
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<PathBuf, Node>) {
        if let Some(path) = &self.removed {
            names.remove(path);
        }
        if let Some((path, node)) = &self.added {
            names.insert(path.clone(), *node);
        }
    }

    fn folder(&self) -> Option<&Path> {
        let added = self.added.as_ref().map(|(path, _)| path);
        added.or(self.removed.as_ref())?.parent()
    }
}

impl File {
    fn sync(&mut self) {
        for (_, reached) in &mut self.changes {
            if *reached == Reached::Not {
                *reached = Reached::Synced;
            }
        }
        self.forget_overwritten();
        let durable = self
            .changes
            .iter()
            .take_while(|(_, reached)| *reached == Reached::Synced)
            .count();
        let bytes = Arc::make_mut(&mut self.base);
        for (change, _) in self.changes.drain(..durable) {
            change.apply(Fate::Whole, bytes);
        }
    }

    fn fail_to_sync(&mut self) {
        for (_, reached) in &mut self.changes {
            if *reached == Reached::Not {
                *reached = Reached::Lost;
            }
        }
    }

    /// A lost change matters no more where a synced one covers it.
    fn forget_overwritten(&mut self) {
        let range = |change: &Change| match change {
            Change::Write(offset, bytes) => *offset..*offset + bytes.len() as u64,
            Change::Length(length) => *length..u64::MAX,
        };
        let changes = std::mem::take(&mut self.changes);
        let covered = |index: usize| {
            let later = changes[index + 1..].iter();
            let synced = later.filter(|(_, reached)| *reached == Reached::Synced);
            let mut ranges = synced.map(|(change, _)| range(change));
            let lost = range(&changes[index].0);
            ranges.any(|range| range.start <= lost.start && lost.end <= range.end)
        };
        self.changes = (0..changes.len())
            .filter(|&index| changes[index].1 == Reached::Synced || !covered(index))
            .map(|index| changes[index].clone())
            .collect();
    }

    fn after(&self, fates: &mut impl Iterator<Item = Fate>) -> Arc<Vec<u8>> {
        if self.changes.is_empty() {
            return Arc::clone(&self.base);
        }
        let mut bytes = self.base.to_vec();
        for (change, reached) in &self.changes {
            let fate = match reached {
                Reached::Synced => Fate::Whole,
                _ => fates.next().unwrap(),
            };
            change.apply(fate, &mut bytes);
        }
        Arc::new(bytes)
    }
}

impl Change {
    fn apply(&self, fate: Fate, bytes: &mut Vec<u8>) {
        match self {
            _ if fate == Fate::Gone => {}
            Self::Length(length) => bytes.resize(*length as usize, 0),
            Self::Write(offset, written) => write(*offset, written, fate, bytes),
        }
    }
}

fn write(offset: u64, written: &[u8], fate: Fate, bytes: &mut Vec<u8>) {
    let start = offset as usize;
    let mut put = |from: usize, to: usize| {
        bytes.resize(bytes.len().max(start + to), 0);
        bytes[start + from..start + to].copy_from_slice(&written[from..to]);
    };
    match fate {
        Fate::Gone => {}
        Fate::Whole => put(0, written.len()),
        Fate::Zeros => put(written.len(), written.len()),
        Fate::Torn { kept, grown } => {
            put(0, kept);
            if grown {
                put(written.len(), written.len());
            }
        }
        Fate::Sectors(bits) => {
            let place = |sector: u64| ((sector * SECTOR).max(offset) - offset) as usize;
            let first = offset / SECTOR;
            for sector in first..(offset + written.len() as u64).div_ceil(SECTOR) {
                if bits.rotate_right((sector - first) as u32 % 64) & 1 == 1 {
                    put(place(sector), place(sector + 1).min(written.len()));
                }
            }
        }
    }
}

/// Fates of the unsynced calls, one list a state to look at.
pub fn losses(unsynced: &[Unsynced], effort: Effort, random: &mut Random) -> Vec<Vec<Fate>> {
    let count = unsynced.len();
    let mut losses = vec![vec![Fate::Gone; count]];
    if count == 0 {
        return losses;
    }
    losses.push(vec![Fate::Whole; count]);
    for (index, call) in unsynced
        .iter()
        .enumerate()
        .filter(|(_, call)| call.bytes > 0)
    {
        for fate in call.torn(effort, random) {
            for others in [Fate::Gone, Fate::Whole] {
                let mut fates = vec![others; count];
                fates[index] = fate;
                losses.push(fates);
            }
        }
    }
    if count <= effort.subsets {
        let is_there = |subset: u32, index: usize| match subset >> index & 1 {
            0 => Fate::Gone,
            _ => Fate::Whole,
        };
        losses.extend(
            (0..1u32 << count)
                .map(|subset| (0..count).map(|index| is_there(subset, index)).collect()),
        );
    }
    for _ in 0..effort.random {
        let fates = unsynced.iter().map(|call| call.random_fate(random));
        losses.push(fates.collect());
    }
    losses
}

impl Unsynced {
    /// The ways in which this write may be there in part.
    fn torn(&self, effort: Effort, random: &mut Random) -> Vec<Fate> {
        let mut places: Vec<usize> = match self.bytes <= effort.every_byte {
            true => (1..self.bytes).collect(),
            false => {
                let sector = (SECTOR - self.offset % SECTOR) as usize;
                let mut places = vec![1, sector - 1, sector, sector + 1, self.bytes - 1];
                places.extend((0..effort.places).map(|_| random.below(self.bytes)));
                places
            }
        };
        places.retain(|&kept| 0 < kept && kept < self.bytes);
        let torn = places
            .into_iter()
            .flat_map(|kept| [true, false].map(|grown| Fate::Torn { kept, grown }));
        let spanned = (self.offset % SECTOR + self.bytes as u64).div_ceil(SECTOR);
        let sectors: Vec<u64> = match spanned {
            1 => Vec::new(),
            2..=3 => (1..(1 << spanned) - 1).collect(),
            _ => [!1, 1]
                .into_iter()
                .chain((0..effort.places).map(|_| random.next()))
                .collect(),
        };
        let sectors = sectors.into_iter().map(Fate::Sectors);
        torn.chain(sectors).chain([Fate::Zeros]).collect()
    }

    fn random_fate(&self, random: &mut Random) -> Fate {
        match random.below(if self.bytes > 0 { 5 } else { 2 }) {
            0 => Fate::Gone,
            1 => Fate::Whole,
            2 => Fate::Zeros,
            3 => Fate::Sectors(random.next()),
            _ => Fate::Torn {
                kept: random.below(self.bytes),
                grown: random.below(2) == 0,
            },
        }
    }
}
