//! Files that nobody wrote, read, checked and grown: see `storage::fuzz`.

use super::page::Meta;
use super::*;
use crate::storage::fuzz::{Dice, mutate, rounds};
use std::sync::Mutex;

const FILES: [&[u8]; 3] = [
    include_bytes!("../../../testdata/bbolt/etcd.db"),
    include_bytes!("../../../testdata/bbolt/array.db"),
    include_bytes!("../../../testdata/bbolt/hashmap.db"),
];

/// A file in memory that nobody may ask for more than it has.
struct Bounded(Mutex<Vec<u8>>);

impl Source for Bounded {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        let file = self.0.lock().unwrap();
        assert!(buf.len() <= file.len(), "{} bytes asked of {}", buf.len(), file.len());
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = file.get(at..at.saturating_add(buf.len()));
        buf.copy_from_slice(bytes.ok_or(std::io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn len(&self) -> std::io::Result<u64> {
        Ok(self.0.lock().unwrap().len() as u64)
    }
}

impl Disk for Bounded {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        let mut file = self.0.lock().unwrap();
        let end = offset as usize + bytes.len();
        let len = file.len().max(end);
        file.resize(len, 0);
        file[offset as usize..end].copy_from_slice(bytes);
        Ok(())
    }

    fn sync(&self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Changes a whole file, or one page of it near its head; the meta pages are often left whole.
fn damage(file: &mut Vec<u8>, page_bytes: usize, dice: &mut Dice) {
    for _ in 0..=dice.below(5) {
        let pages = (file.len() / page_bytes) as u64;
        if pages < 3 {
            break;
        }
        let page = 2 + dice.below(pages - 2) as usize;
        let at = page * page_bytes;
        match dice.below(4) {
            0 => {
                let number = dice.number().to_le_bytes();
                let to = at + dice.below(80) as usize;
                let width = [1, 2, 4, 8][dice.below(4) as usize];
                file[to..to + width].copy_from_slice(&number[..width]);
            }
            1 => {
                let other = (2 + dice.below(pages - 2) as usize) * page_bytes;
                file.copy_within(other..other + page_bytes, at);
                if dice.below(2) == 0 {
                    file[at..at + 8].copy_from_slice(&(page as u64).to_le_bytes());
                }
            }
            2 => {
                let mut bytes = file[at..at + page_bytes].to_vec();
                mutate(&mut bytes, dice);
                bytes.resize(page_bytes, 0);
                file[at..at + page_bytes].copy_from_slice(&bytes);
            }
            _ => file[at + 8] = [1, 2, 4, 16][dice.below(4) as usize],
        }
    }
    if dice.below(4) == 0 {
        let slot = dice.below(2);
        let at = slot as usize * page_bytes;
        if let Some(bytes) = file.get(at..at + page_bytes)
            && let Ok(mut meta) = Meta::parse(bytes)
        {
            let number =
                if dice.below(2) == 0 { dice.below(meta.pages + 2) } else { dice.number() };
            match dice.below(4) {
                0 => meta.root = number,
                1 => meta.freelist = Some(number).filter(|number| number % 3 > 0),
                2 => meta.pages = number,
                _ => meta.txid = number,
            }
            file[at..at + page_bytes].copy_from_slice(&meta.page(slot));
        }
    }
    if dice.below(8) == 0 {
        mutate(file, dice);
    }
}

fn walk(db: &Db<&Bounded>, bucket: &Bucket, direction: Direction, depth: u64) -> Result<u64> {
    let mut rows = 0;
    for item in db.walk(bucket, direction) {
        match item? {
            Item::Row(key, value) => rows += u64::from(key.len() + value.len() > 0),
            Item::Bucket(_, below) if depth < 4 => rows += walk(db, &below, direction, depth + 1)?,
            Item::Bucket(..) => {}
        }
    }
    Ok(rows)
}

fn grow(file: &Bounded) -> std::result::Result<(), GrowError> {
    for n in 0..3u8 {
        let mut growth = Grower::open(file, b"key")?.begin();
        growth.bucket(b"key")?;
        for i in 0..40 {
            growth.row(&[0xff, 0xff, n, i], &[n; 300])?;
        }
        growth.bucket(b"lease")?;
        growth.row(b"row", &[n; 2_000])?;
        growth.commit()?;
    }
    Ok(())
}

#[test]
fn bbolt_files() {
    let (mut sound, mut grown) = (0u64, 0u64);
    rounds("bbolt_files", 1_200, |dice| {
        let file = FILES[dice.below(3) as usize];
        let page_bytes = Db::open(bytes::Bytes::from_static(file)).unwrap().meta().page_bytes;
        let mut file = file.to_vec();
        damage(&mut file, page_bytes as usize, dice);
        let file = Bounded(Mutex::new(file));
        let Ok(db) = Db::open(&file) else { return };
        if db.check().is_ok() {
            // What checks as a whole can be walked, both ways with the same rows.
            let ways = [Direction::Forward, Direction::Backward];
            let rows = ways.map(|way| walk(&db, &db.root(), way, 0).unwrap());
            assert_eq!(rows[0], rows[1]);
            sound += 1;
        } else {
            for way in [Direction::Forward, Direction::Backward] {
                let _ = walk(&db, &db.root(), way, 0);
            }
        }
        let _ = db.bucket(b"key");
        if grow(&file).is_ok() {
            grown += 1;
        }
    });
    assert!(sound > 0 && grown > 0, "no round gets through: {sound} sound, {grown} grown");
}
