//! The commit log of a shard: which rows are there for good, and the checksums that prove it.
//!
//! ```text
//! 0  rows so far u64 | 8 CRC-32 of the rows u32 | 12 CRC-32 of the ids u32 | 16 CRC-32 of the 16 bytes before
//! ```
//!
//! A record commits the rows from the record before it up to its own count, all in one chunk.

use std::io;
use std::ops::Range;

use crate::checksum::{crc32, joined};
use crate::disk::DiskFile;

/// Length of a record.
pub(crate) const RECORD_BYTES: usize = 20;

/// Bytes of a record that its own checksum, the last 4, is of.
const CHECKED: usize = RECORD_BYTES - 4;

/// Bytes that a disk writes whole or not at all; larger real sectors are multiples of it.
const SECTOR_BYTES: u64 = 512;

/// One commit of rows of one chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    /// Rows of the shard up to and with this record.
    pub(crate) rows: u64,
    /// CRC-32 of the rows that it commits.
    pub(crate) rows_crc: u32,
    /// CRC-32 of their ids.
    pub(crate) ids_crc: u32,
}

impl Record {
    pub(crate) fn to_bytes(self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        bytes[0..8].copy_from_slice(&self.rows.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.rows_crc.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.ids_crc.to_le_bytes());
        let checksum = crc32(&bytes[..CHECKED]);
        bytes[CHECKED..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// The record in these bytes, unless its checksum differs.
    pub(crate) fn from_bytes(bytes: &[u8; RECORD_BYTES]) -> Option<Self> {
        let (words, _) = bytes.as_chunks::<4>();
        let [low, high, rows_crc, ids_crc, checksum] =
            std::array::from_fn(|i| u32::from_le_bytes(words[i]));
        (crc32(&bytes[..CHECKED]) == checksum).then_some(Self {
            rows: u64::from(low) | u64::from(high) << 32,
            rows_crc,
            ids_crc,
        })
    }
}

/// The valid records at the start of a log. Bytes after them were never committed, or were torn
/// by a crash; but a valid record after them means that a committed one is damaged.
///
/// # Errors
/// What is wrong, in words.
pub(crate) fn parse(bytes: &[u8], chunk_rows: u64) -> Result<Vec<Record>, String> {
    let (whole, _) = bytes.as_chunks::<RECORD_BYTES>();
    let records: Vec<Record> = whole.iter().map_while(Record::from_bytes).collect();
    if whole[records.len()..]
        .iter()
        .any(|bytes| Record::from_bytes(bytes).is_some())
    {
        return Err(format!("the checksum of record {} differs", records.len()));
    }
    let mut rows = 0;
    for (index, record) in records.iter().enumerate() {
        let chunk = rows / chunk_rows;
        if record.rows <= rows || (record.rows - 1) / chunk_rows != chunk {
            return Err(format!(
                "record {index} expected to end in rows {}:{}, got {}",
                rows + 1,
                (chunk + 1).saturating_mul(chunk_rows).saturating_add(1),
                record.rows
            ));
        }
        rows = record.rows;
    }
    Ok(records)
}

/// One record a chunk, from any records of the same rows, without reading the rows again.
pub(crate) fn compacted(records: &[Record], row_bytes: usize, chunk_rows: u64) -> Vec<Record> {
    let mut compact: Vec<Record> = Vec::new();
    let mut rows = 0;
    for &record in records {
        let added = record.rows - rows;
        match compact.last_mut() {
            Some(last) if (last.rows - 1) / chunk_rows == (record.rows - 1) / chunk_rows => {
                *last = Record {
                    rows: record.rows,
                    rows_crc: joined(last.rows_crc, record.rows_crc, added * row_bytes as u64),
                    ids_crc: joined(last.ids_crc, record.ids_crc, added * 8),
                };
            }
            _ => compact.push(record),
        }
        rows = record.rows;
    }
    compact
}

/// The checksum of a whole log, by which the manifest knows it: CRC-32 of its records without
/// their own checksums. With them it would be the same for any records, for the CRC-32 of bytes
/// followed by their CRC-32 is a constant.
pub(crate) fn checksum(records: &[Record]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for record in records {
        hasher.update(&record.to_bytes()[..CHECKED]);
    }
    hasher.finalize()
}

pub(crate) fn to_bytes(records: &[Record]) -> Vec<u8> {
    records
        .iter()
        .flat_map(|record| record.to_bytes())
        .collect()
}

/// Writes records at byte `offset` of the log and syncs them, never two sectors' worth at once:
/// so whatever a crash tears, no record is whole after one that is not, as [`parse`] demands.
pub(crate) fn append(file: &dyn DiskFile, offset: u64, records: &[Record]) -> io::Result<()> {
    let bytes = to_bytes(records);
    for group in ordered_groups(offset, records.len()) {
        file.write_all_at(&bytes[group.clone()], offset + group.start as u64)?;
        file.sync()?;
    }
    Ok(())
}

/// Byte ranges of `count` records, each ending with the record that reaches or crosses a sector's end.
fn ordered_groups(offset: u64, count: usize) -> Vec<Range<usize>> {
    let mut groups = Vec::new();
    let mut start = 0;
    for end in (1..=count).map(|records| records * RECORD_BYTES) {
        let sector = |bytes: usize| (offset + bytes as u64) / SECTOR_BYTES;
        if end == count * RECORD_BYTES || sector(end) > sector(start) {
            groups.push(start..end);
            start = end;
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(rows: u64) -> Record {
        Record {
            rows,
            rows_crc: rows as u32 ^ 77,
            ids_crc: 5,
        }
    }

    /// The records of these rows and ids, cut at the ends of chunks. `first` is the row of the shard
    /// that comes first.
    fn records(
        rows: &[u8],
        ids: &[u8],
        row_bytes: usize,
        first: u64,
        chunk_rows: u64,
    ) -> Vec<Record> {
        let count = (ids.len() / 8) as u64;
        let mut records = Vec::new();
        let mut done = 0;
        while done < count {
            let left_in_chunk = chunk_rows - (first + done) % chunk_rows;
            let end = count.min(done + left_in_chunk);
            let part = done as usize..end as usize;
            records.push(Record {
                rows: first + end,
                rows_crc: crc32(&rows[part.start * row_bytes..part.end * row_bytes]),
                ids_crc: crc32(&ids[part.start * 8..part.end * 8]),
            });
            done = end;
        }
        records
    }

    #[test]
    fn a_record_is_twenty_little_endian_bytes() {
        let bytes = Record {
            rows: 0x0102,
            rows_crc: 3,
            ids_crc: 4,
        }
        .to_bytes();
        assert_eq!(
            bytes[..16],
            [2, 1, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0]
        );
        assert_eq!(bytes[16..], crc32(&bytes[..16]).to_le_bytes());
    }

    #[test]
    fn the_checksum_of_a_log_tells_any_change_of_its_records() {
        let records = [record(3), record(4), record(8)];
        let whole = checksum(&records);
        assert_eq!(
            whole,
            crc32(
                &records
                    .map(|record| record.to_bytes())
                    .map(|bytes| {
                        let mut checked = [0; CHECKED];
                        checked.copy_from_slice(&bytes[..CHECKED]);
                        checked
                    })
                    .concat()
            )
        );
        for index in 0..3 {
            for change in [
                |r: &mut Record| r.rows ^= 1,
                |r: &mut Record| r.rows_crc ^= 8,
                |r: &mut Record| r.ids_crc ^= 1 << 31,
            ] {
                let mut other = records;
                change(&mut other[index]);
                assert_ne!(checksum(&other), whole);
            }
        }
    }

    #[test]
    fn a_torn_tail_is_not_read() {
        let whole = to_bytes(&[record(3), record(4), record(8)]);
        for length in 0..whole.len() {
            let parsed = parse(&whole[..length], 4).unwrap();
            assert_eq!(parsed.len(), length / RECORD_BYTES);
        }
        let mut zeros = whole.clone();
        zeros.resize(whole.len() + 50, 0);
        assert_eq!(parse(&zeros, 4).unwrap().len(), 3);
    }

    #[test]
    fn a_damaged_record_before_a_valid_one_is_an_error() {
        let mut bytes = to_bytes(&[record(3), record(4), record(8)]);
        bytes[RECORD_BYTES] ^= 1;
        assert_eq!(
            parse(&bytes, 4),
            Err("the checksum of record 1 differs".to_owned())
        );
    }

    #[test]
    fn counts_that_do_not_grow_or_leave_their_chunk_are_errors() {
        for rows in [[3, 3], [3, 2], [3, 5], [5, 6], [0, 1], [3, u64::MAX]] {
            let log = to_bytes(&rows.map(record));
            assert!(parse(&log, 4).is_err(), "{rows:?}");
        }
        assert!(parse(&to_bytes(&[record(u64::MAX)]), u64::MAX).is_ok());
    }

    #[test]
    fn no_group_holds_a_whole_record_after_a_sector_it_left() {
        for offset in (0..2000).step_by(RECORD_BYTES) {
            let groups = ordered_groups(offset, 60);
            assert_eq!(groups.iter().map(|group| group.len()).sum::<usize>(), 1200);
            for group in groups {
                let last_record = offset + (group.end - RECORD_BYTES) as u64;
                let start = offset + group.start as u64;
                assert_eq!(start / SECTOR_BYTES, last_record / SECTOR_BYTES);
            }
        }
    }

    proptest! {
        #[test]
        fn compacted_records_do_not_depend_on_the_commits(
            cuts in proptest::collection::btree_set(1u64..50, 0..20), chunk_log in 0u32..5,
        ) {
            let chunk_rows = 1 << chunk_log;
            let rows: Vec<u8> = (0..150u8).collect();
            let ids: Vec<u8> = (0..=255).cycle().take(400).collect();
            let mut pieces = Vec::new();
            let mut first = 0;
            for cut in cuts.into_iter().chain([50]) {
                let part = first as usize..cut as usize;
                pieces.extend(records(&rows[part.start * 3..part.end * 3], &ids[part.start * 8..part.end * 8], 3, first, chunk_rows));
                first = cut;
            }
            let once = records(&rows, &ids, 3, 0, chunk_rows);
            prop_assert_eq!(parse(&to_bytes(&pieces), chunk_rows), Ok(pieces.clone()));
            prop_assert_eq!(compacted(&pieces, 3, chunk_rows), once);
        }
    }
}
