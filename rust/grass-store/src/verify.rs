//! Reads every byte of a store and lists everything that is wrong with it.

use std::sync::Mutex;

use grass_core::parallel::Workers;

use crate::error::{Damage, Error, Result};
use crate::manifest::Manifest;
use crate::reader::StoreReader;
use crate::shard::{Refusal, Shard};

impl StoreReader {
    /// Compares every checksum of the store: manifest, headers, rows and ids.
    ///
    /// # Errors
    /// [`Error::Corrupt`] with all damage found, each with shard, chunk and row range;
    /// [`Error::Io`]; [`Error::Core`] when cancelled.
    pub fn verify(&self, workers: &Workers) -> Result<()> {
        let found = Mutex::new(Vec::new());
        let note = |damage: Vec<Damage>| {
            let mut found = found
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            found.extend(damage);
        };
        match Manifest::read(self.path()) {
            Ok(_) => {}
            Err(Error::Corrupt { damage, .. }) => note(damage),
            Err(error) => return Err(error),
        }
        for shard in self.shards() {
            note(damage_of(
                shard.check_files(self.layout()).map(|()| Vec::new()),
            )?);
        }
        workers.for_each(self.chunks(0..self.rows()), |span| {
            let (shard, chunk) = self.locate(&span);
            note(damage_of(self.check_chunk(shard, chunk))?);
            note(damage_of(
                shard
                    .read_ids(chunk, self.layout())
                    .map(|(_, damage)| damage),
            )?);
            Ok::<(), Error>(())
        })?;
        let mut damage = found
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if damage.is_empty() {
            return Ok(());
        }
        damage.sort_by_key(Damage::place);
        Err(Error::Corrupt {
            path: self.path().to_path_buf(),
            damage,
        })
    }

    fn check_chunk(&self, shard: &Shard, chunk: u64) -> std::result::Result<Vec<Damage>, Refusal> {
        let window = shard.map(chunk, self.layout())?;
        Ok(shard.check_rows(chunk, &window, self.layout()))
    }
}

/// Damage found, with that which kept a part from being looked at.
fn damage_of(outcome: std::result::Result<Vec<Damage>, Refusal>) -> Result<Vec<Damage>> {
    match outcome {
        Ok(damage) => Ok(damage),
        Err(Refusal::Damaged(damage)) => Ok(vec![damage]),
        Err(Refusal::Failed(error)) => Err(error),
    }
}
