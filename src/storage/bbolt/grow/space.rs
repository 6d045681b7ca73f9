//! The file's pages as a growth sees them: which may be written, and the writes.

use super::super::page::{HEADER_BYTES, Header, Kind, Meta};
use super::super::tree::{Pages, Run};
use super::runs::Runs;
use super::{Disk, GrowError};
use std::io;

/// Bytes that are gathered before they are written, and so the size of most writes of much.
const WRITE_BYTES: usize = 1 << 20;
/// Pages that a free list in the file may name. etcd writes none at all, since a long one would
/// cost more than what a transaction changes; a short one spares who opens the file next from
/// going through all of it.
const LISTED_MAX: u64 = 8_192;

/// See the module.
#[derive(Debug)]
pub(super) struct Space<D> {
    disk: D,
    page_bytes: usize,
    /// Pages that were ever used; those from here on may be written.
    next: u64,
    /// Pages that neither meta page reaches: they may be written.
    ready: Runs,
    /// Pages that only the older meta page reaches.
    waiting: Runs,
    /// Pages that the newer meta page reaches, and the growth at hand will not.
    freed: Runs,
    /// A page that was given back twice: the file is not what it seems.
    clash: Option<u64>,
    /// Bytes that are to be written at `at`.
    gathered: Vec<u8>,
    at: u64,
    written: u64,
}

impl<D: Disk> Space<D> {
    /// `free` are the pages that the newest meta page does not reach. The older one may: none of
    /// them is written before it is replaced.
    pub(super) fn new(disk: D, meta: &Meta, free: Runs) -> Space<D> {
        Space {
            disk,
            page_bytes: meta.page_bytes as usize,
            next: meta.pages,
            ready: Runs::default(),
            waiting: free,
            freed: Runs::default(),
            clash: None,
            gathered: Vec::new(),
            at: 0,
            written: 0,
        }
    }

    pub(super) fn disk(&self) -> &D {
        &self.disk
    }

    /// Pages that were ever used.
    pub(super) fn pages(&self) -> u64 {
        self.next
    }

    /// Of these, how many hold nothing.
    pub(super) fn dead(&self) -> u64 {
        self.ready.pages() + self.waiting.pages() + self.freed.pages()
    }

    /// Bytes handed to the disk so far.
    pub(super) fn written(&self) -> u64 {
        self.written + self.gathered.len() as u64
    }

    fn take(&mut self, pages: u64) -> Run {
        self.ready.take(pages).unwrap_or_else(|| {
            let page = self.next;
            self.next += pages;
            Run { page, pages }
        })
    }

    fn write(&mut self, run: Run, mut bytes: Vec<u8>) -> io::Result<()> {
        bytes.resize(run.pages as usize * self.page_bytes, 0);
        let at = run.page * self.page_bytes as u64;
        if self.at + self.gathered.len() as u64 != at || self.gathered.len() >= WRITE_BYTES {
            self.flush()?;
            self.at = at;
        }
        if self.gathered.is_empty() {
            self.gathered = bytes;
        } else {
            self.gathered.extend_from_slice(&bytes);
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.gathered.is_empty() {
            self.disk.write_all_at(&self.gathered, self.at)?;
            self.written += self.gathered.len() as u64;
            self.gathered.clear();
        }
        Ok(())
    }

    /// Writes the list of what is free after this growth, if it is short.
    pub(super) fn write_freelist(&mut self) -> io::Result<Option<Run>> {
        let dead = self.dead();
        if dead > LISTED_MAX {
            return Ok(None);
        }
        // The list's own pages may come from those that it would name.
        let bytes = HEADER_BYTES + dead as usize * 8;
        let run = self.take(bytes.div_ceil(self.page_bytes) as u64);
        let mut free: Vec<Run> = [&self.ready, &self.waiting, &self.freed]
            .into_iter()
            .flat_map(|runs| runs.iter())
            .collect();
        free.sort_unstable_by_key(|run| run.page);
        let (count, overflow) = (self.dead() as u16, run.pages as u32 - 1);
        let header = Header { id: run.page, kind: Kind::Freelist, count, overflow };
        let mut list = header.bytes().to_vec();
        for page in free.into_iter().flat_map(|run| run.page..run.page + run.pages) {
            list.extend_from_slice(&page.to_le_bytes());
        }
        self.write(run, list)?;
        Ok(Some(run))
    }

    /// Makes everything written so far durable.
    pub(super) fn sync(&mut self) -> Result<(), GrowError> {
        if let Some(page) = self.clash {
            return Err(GrowError::Unfit(format!("page {page} is both free and in use")));
        }
        self.flush()?;
        Ok(self.disk.sync()?)
    }

    /// Makes the meta page in `slot` the newest, durably. What it names is durable.
    pub(super) fn commit(&mut self, slot: u64, meta: &Meta) -> Result<(), GrowError> {
        let page = meta.page(slot);
        self.written += page.len() as u64;
        self.disk.write_all_at(&page, slot * self.page_bytes as u64)?;
        self.disk.sync()?;
        // The meta page that reached what was waiting is gone.
        let waited = std::mem::replace(&mut self.waiting, std::mem::take(&mut self.freed));
        for run in waited.iter() {
            if !self.ready.insert(run) {
                return Err(GrowError::Unfit(format!("page {} is free twice", run.page)));
            }
        }
        Ok(())
    }
}

impl<D: Disk> Pages for Space<D> {
    fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    fn put(&mut self, bytes: usize, encode: impl FnOnce(u64, u32) -> Vec<u8>) -> io::Result<Run> {
        let run = self.take(bytes.div_ceil(self.page_bytes) as u64);
        self.write(run, encode(run.page, run.pages as u32 - 1))?;
        Ok(run)
    }

    fn free(&mut self, run: Run) {
        let known = [&self.ready, &self.waiting].into_iter().any(|runs| runs.meets(run));
        if known || !self.freed.insert(run) {
            self.clash = Some(run.page);
        }
    }
}
