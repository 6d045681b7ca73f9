//! The log as the raft crate sees it: a bounded cache of recent entries over an archive on disk.

use crate::base::limits;
use crate::pb::raftpb::{ConfState, Entry, HardState, Snapshot, SnapshotMetadata};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};
use std::collections::VecDeque;

/// Entries that are no longer in memory; `storage::wal` implements it.
pub trait Archive: Send + 'static {
    /// Entries `low..high`, at least one, stopping after `bytes_max`.
    fn entries(&self, low: u64, high: u64, bytes_max: u64) -> Result<Vec<Entry>, String>;
}

/// Where the log stands at start.
#[derive(Clone, Debug, Default)]
pub struct LogStart {
    pub hard_state: HardState,
    pub conf_state: ConfState,
    /// Entries up to this index are not for others: the log does not hold them, or the state after
    /// them cannot be made from the log alone. 0 if it can.
    pub floor: u64,
    /// Index of the last entry on disk.
    pub last_index: u64,
    /// (first index, term) of each run of equal terms, ascending.
    pub term_runs: Vec<(u64, u64)>,
    /// The newest entries, contiguous up to `last_index`; may be empty.
    pub tail: Vec<Entry>,
}

/// The persisted log.
pub struct Log<A> {
    archive: A,
    hard_state: HardState,
    conf_state: ConfState,
    floor: u64,
    last_index: u64,
    term_runs: Vec<(u64, u64)>,
    /// Invariant: contiguous, and its last entry is `last_index`, or it is empty.
    cache: VecDeque<Entry>,
    cache_bytes: usize,
    /// Entries above this index stay in the cache whatever its bounds.
    applied: u64,
}

impl<A: Archive> Log<A> {
    /// Takes the log over from recovery.
    pub fn new(archive: A, start: LogStart) -> Log<A> {
        let mut log = Log {
            archive,
            hard_state: start.hard_state,
            conf_state: start.conf_state,
            floor: start.floor,
            last_index: start.last_index,
            term_runs: start.term_runs,
            cache: VecDeque::new(),
            cache_bytes: 0,
            applied: 0,
        };
        for entry in start.tail {
            log.cache_bytes += entry.data.len();
            log.cache.push_back(entry);
        }
        log
    }

    /// Follows a save to disk: entries replace everything from their first index on.
    pub fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else {
            return;
        };
        assert!(first.index >= 1);
        assert!(first.index <= self.last_index + 1, "{} after {}", first.index, self.last_index);
        while self.cache.back().is_some_and(|entry| entry.index >= first.index) {
            let dropped = self.cache.pop_back().expect("just seen");
            self.cache_bytes -= dropped.data.len();
        }
        while self.term_runs.last().is_some_and(|(start, _)| *start >= first.index) {
            self.term_runs.pop();
        }
        for entry in entries {
            if self.term_runs.last().is_none_or(|(_, term)| *term != entry.term) {
                self.term_runs.push((entry.index, entry.term));
            }
            self.cache_bytes += entry.data.len();
            self.cache.push_back(entry.clone());
            self.last_index = entry.index;
        }
        self.trim();
    }

    /// Follows a save of the hard state.
    pub fn set_hard_state(&mut self, hard_state: HardState) {
        self.hard_state = hard_state;
    }

    /// Keeps the commit index current between saves of the hard state.
    pub fn set_commit(&mut self, commit: u64) {
        self.hard_state.commit = commit;
    }

    /// The hard state as last set.
    pub fn hard_state(&self) -> HardState {
        self.hard_state
    }

    /// Follows an applied conf change.
    pub fn set_conf_state(&mut self, conf_state: ConfState) {
        self.conf_state = conf_state;
    }

    /// Entries up to this index, as far as they are applied, are not for others any more. False if
    /// they were not before.
    pub fn set_floor(&mut self, floor: u64) -> bool {
        let floor = floor.min(self.applied);
        if floor <= self.floor {
            return false;
        }
        self.floor = floor;
        // The run that holds it stays: the term before the first entry is asked for.
        let after = self.term_runs.partition_point(|(start, _)| *start <= floor);
        self.term_runs.drain(..after.saturating_sub(1));
        true
    }

    /// Entries up to `applied` may leave memory.
    pub fn set_applied(&mut self, applied: u64) {
        self.applied = self.applied.max(applied);
        self.trim();
    }

    /// A snapshot has taken the place of the log: the next entry follows it.
    pub fn restart(&mut self, metadata: &SnapshotMetadata) {
        let SnapshotMetadata { conf_state, index, term } = metadata;
        self.conf_state = conf_state.clone().unwrap_or_default();
        (self.floor, self.last_index) = (*index, *index);
        self.term_runs = vec![(*index, *term)];
        self.cache.clear();
        self.cache_bytes = 0;
    }

    fn trim(&mut self) {
        while self.cache.len() > limits::LOG_CACHE_ENTRIES_MAX
            || self.cache_bytes > limits::LOG_CACHE_BYTES_MAX
        {
            if self.cache.front().is_none_or(|entry| entry.index > self.applied) {
                return;
            }
            let dropped = self.cache.pop_front().expect("just seen");
            self.cache_bytes -= dropped.data.len();
        }
    }
}

impl<A: Archive> Storage for Log<A> {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState { hard_state: self.hard_state, conf_state: self.conf_state.clone() })
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        let bytes_max = max_size.into().unwrap_or(u64::MAX);
        if low <= self.floor {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        if high > self.last_index + 1 {
            return Err(raft::Error::Store(StorageError::Unavailable));
        }
        let cached_from = self.cache.front().map_or(u64::MAX, |entry| entry.index);
        if low < cached_from {
            let high = high.min(cached_from);
            return self.archive.entries(low, high, bytes_max).map_err(|reason| {
                raft::Error::Store(StorageError::Other(Box::new(std::io::Error::other(reason))))
            });
        }
        let start = (low - cached_from) as usize;
        let mut entries = Vec::new();
        let mut bytes = 0;
        for entry in self.cache.iter().skip(start).take((high - low) as usize) {
            bytes += prost::Message::encoded_len(entry) as u64;
            if bytes > bytes_max && !entries.is_empty() {
                break;
            }
            entries.push(entry.clone());
        }
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == 0 {
            return Ok(0);
        }
        if index > self.last_index {
            return Err(raft::Error::Store(StorageError::Unavailable));
        }
        let after = self.term_runs.partition_point(|(start, _)| *start <= index);
        match after.checked_sub(1) {
            Some(run) => Ok(self.term_runs[run].1),
            None => Err(raft::Error::Store(StorageError::Compacted)),
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.floor + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last_index)
    }

    /// For who needs what lies before the log: an index that a snapshot will have reached when it
    /// is made. What it holds is the machine's, so whoever sends it fills it in.
    fn snapshot(&self, _request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        let unavailable = raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable);
        // A snapshot of its own may be on its way into the machine.
        if self.applied == 0 || self.applied < self.floor {
            return Err(unavailable);
        }
        let term = self.term(self.applied)?;
        let conf_state = Some(self.conf_state.clone());
        let metadata = Some(SnapshotMetadata { conf_state, index: self.applied, term });
        Ok(Snapshot { data: bytes::Bytes::new(), metadata })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nothing;
    impl Archive for Nothing {
        fn entries(&self, low: u64, _: u64, _: u64) -> Result<Vec<Entry>, String> {
            Ok(vec![entry(low, 1, 0)])
        }
    }

    fn entry(index: u64, term: u64, size: usize) -> Entry {
        Entry { index, term, data: vec![0; size].into(), ..Entry::default() }
    }

    #[test]
    fn a_conflicting_tail_is_replaced_with_its_terms() {
        let mut log = Log::new(Nothing, LogStart::default());
        log.append(&[entry(1, 1, 1), entry(2, 1, 1), entry(3, 2, 1)]);
        log.append(&[entry(2, 3, 1)]);
        assert_eq!(log.last_index().unwrap(), 2);
        assert_eq!(log.term(1).unwrap(), 1);
        assert_eq!(log.term(2).unwrap(), 3);
        assert!(log.term(3).is_err());
    }

    #[test]
    fn entries_up_to_the_floor_are_not_for_others() {
        let mut log = Log::new(Nothing, LogStart::default());
        log.append(&[entry(1, 1, 1), entry(2, 2, 1), entry(3, 2, 1), entry(4, 3, 1)]);
        log.set_applied(4);
        for (floor, moves) in [(3, true), (2, false), (3, false)] {
            assert_eq!(log.set_floor(floor), moves);
            assert_eq!(log.first_index().unwrap(), 4);
        }
        assert_eq!((log.term(3).unwrap(), log.term(4).unwrap()), (2, 3));
        assert!(log.term(1).is_err());
        let context = || GetEntriesContext::empty(false);
        assert!(log.entries(3, 5, None, context()).is_err());
        assert_eq!(log.entries(4, 5, None, context()).unwrap().len(), 1);
    }

    #[test]
    fn a_snapshot_takes_the_place_of_the_log_and_one_can_be_sent_once_it_is_applied() {
        let mut log = Log::new(Nothing, LogStart::default());
        assert!(log.snapshot(0, 2).is_err());
        log.append(&[entry(1, 1, 1), entry(2, 1, 1), entry(3, 1, 1)]);
        log.set_applied(2);
        assert_eq!(log.snapshot(0, 2).unwrap().get_metadata().index, 2);
        let conf_state = Some(ConfState { voters: vec![7], ..ConfState::default() });
        log.restart(&SnapshotMetadata { conf_state, index: 90, term: 4 });
        assert_eq!((log.first_index().unwrap(), log.last_index().unwrap()), (91, 90));
        assert_eq!(log.term(90).unwrap(), 4);
        assert!(log.term(3).is_err() && log.term(91).is_err());
        assert_eq!(log.initial_state().unwrap().conf_state.voters, [7]);
        assert!(log.snapshot(0, 2).is_err(), "its state is not there yet");
        log.append(&[entry(91, 4, 1), entry(92, 5, 1)]);
        log.set_applied(90);
        let snapshot = log.snapshot(0, 2).unwrap();
        assert_eq!((snapshot.get_metadata().index, snapshot.get_metadata().term), (90, 4));
        assert_eq!(log.entries(91, 93, None, GetEntriesContext::empty(false)).unwrap().len(), 2);
    }

    #[test]
    fn applied_entries_leave_memory_and_come_from_the_archive() {
        let mut log = Log::new(Nothing, LogStart::default());
        let count = limits::LOG_CACHE_ENTRIES_MAX as u64 + 10;
        let entries: Vec<Entry> = (1..=count).map(|index| entry(index, 1, 1)).collect();
        log.append(&entries);
        assert_eq!(log.cache.len() as u64, count);
        log.set_applied(count);
        assert_eq!(log.cache.len(), limits::LOG_CACHE_ENTRIES_MAX);
        let context = GetEntriesContext::empty(false);
        assert_eq!(log.entries(1, 3, None, context).unwrap()[0].index, 1);
        let context = GetEntriesContext::empty(false);
        assert_eq!(log.entries(count, count + 1, None, context).unwrap()[0].index, count);
    }
}
