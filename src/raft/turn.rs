//! A turn of raft's work in the one order that is safe: send what may leave before the save, save,
//! and only then send and hand on what the save sets free.

use crate::pb::raftpb::{Entry, HardState, Message, Snapshot};
use crate::raft::driver::Driver;
use crate::raft::log::Archive;

/// What a turn does to the world.
pub trait World {
    /// Sends messages to peers; lost ones do no harm.
    fn send(&mut self, messages: Vec<Message>);

    /// Writes down, so that it is on disk when this returns, that a snapshot takes the place of the
    /// log from when a hard state follows that commits its index.
    fn save_snapshot(&mut self, snapshot: &Snapshot) -> Result<(), String>;

    /// Writes down a hard state and entries, in one step; with `must_sync` they are on disk when
    /// this returns. After an error nothing more is asked of this world.
    fn save(
        &mut self,
        hard_state: Option<&HardState>,
        entries: &[Entry],
        must_sync: bool,
    ) -> Result<(), String>;
}

/// What a finished turn leaves to do, in this order.
#[derive(Debug, Default)]
pub struct Turn {
    /// The state that takes the machine's place, before anything is applied.
    pub snapshot: Option<Snapshot>,
    /// Committed entries that this member has on disk; to be applied.
    pub committed: Vec<Entry>,
    /// Answers to read-index rounds: (context, index).
    pub read_states: Vec<(u64, u64)>,
}

impl<A: Archive> Driver<A> {
    /// Does the next round of work, if there is any. The error is the save's; the member must stop.
    pub fn turn(&mut self, world: &mut impl World) -> Result<Option<Turn>, String> {
        let Some(mut work) = self.work() else { return Ok(None) };
        if !work.messages.is_empty() {
            world.send(std::mem::take(&mut work.messages));
        }
        if let Some(snapshot) = &work.snapshot {
            world.save_snapshot(snapshot)?;
            // IMPORTANT: before entries that follow the snapshot, since until it is committed they
            // follow nothing in the log; and it commits none of them, since they are not there yet.
            let mut hard_state = work.hard_state.unwrap_or_else(|| self.hard_state());
            hard_state.commit = snapshot.get_metadata().index;
            world.save(Some(&hard_state), &[], true)?;
            self.commit_saved = hard_state.commit;
        }
        if work.hard_state.is_some() || !work.entries.is_empty() {
            // Raft reports a commit index that only moved forward without a hard state; it rides
            // along, so that the log's stays close behind the applied index.
            let hard_state = work.hard_state.unwrap_or_else(|| self.hard_state());
            let moved = work.hard_state.is_some() || hard_state.commit != self.commit_saved;
            world.save(moved.then_some(&hard_state), &work.entries, work.must_sync)?;
            self.commit_saved = hard_state.commit;
        }
        let saved = self.saved(&work);
        if !saved.messages.is_empty() {
            world.send(saved.messages);
        }
        let mut committed = work.committed;
        committed.extend(saved.committed);
        Ok(Some(Turn { snapshot: work.snapshot, committed, read_states: work.read_states }))
    }

    /// Writes down a commit index that no turn has carried: for a member that is idle, and before
    /// it stops. Whether there was one.
    pub fn save_commit(&mut self, world: &mut impl World) -> Result<bool, String> {
        let hard_state = self.hard_state();
        if hard_state.commit == self.commit_saved {
            return Ok(false);
        }
        world.save(Some(&hard_state), &[], true)?;
        self.commit_saved = hard_state.commit;
        Ok(true)
    }

    /// Writes the newest commit index down, synced whatever is on disk: who the members are must
    /// not be forgotten by a power cut once somebody has acted on it. One that was removed may be
    /// gone then, and with it the only vote for a majority of those before.
    pub fn secure_commit(&mut self, world: &mut impl World) -> Result<(), String> {
        let hard_state = self.hard_state();
        world.save(Some(&hard_state), &[], true)?;
        self.commit_saved = hard_state.commit;
        Ok(())
    }
}
