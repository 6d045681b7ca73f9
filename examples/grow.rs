//! Grows a bbolt file as lines on its standard input say, so that another program can judge the
//! file: `grow FILE`. A line is `b NAME` (a bucket begins), `r KEY VALUE` (a row, all in hex, an
//! empty value being `-`) or `c` (commit; `FILE` is synced, and a line with its dead and all pages
//! is printed). `FILE` is made if there is none. `scripts/judge.sh grown` uses it.

use rusd::storage::bbolt::{GrowError, Grower, Growth, Writer};
use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, Write, stdin, stdout};

fn bytes(hex: &str) -> Result<Vec<u8>, Box<dyn Error>> {
    if hex == "-" {
        return Ok(Vec::new());
    }
    let pairs = hex.as_bytes().chunks(2);
    pairs.map(|pair| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?)).collect()
}

fn open(path: &str) -> Result<File, Box<dyn Error>> {
    if !std::fs::exists(path)? {
        let (plan, pages) = Writer::new(Vec::new()).finish()?;
        let mut file = File::create(path)?;
        file.write_all(&plan.meta_pages(1))?;
        file.write_all(&pages)?;
        file.sync_all()?;
    }
    Ok(OpenOptions::new().read(true).write(true).open(path)?)
}

fn step(growth: &mut Growth<File>, line: &str) -> Result<(), Box<dyn Error>> {
    let words: Vec<&str> = line.split(' ').collect();
    match words[..] {
        ["b", name] => Ok(growth.bucket(&bytes(name)?)?),
        ["r", key, value] => Ok(growth.row(&bytes(key)?, &bytes(value)?)?),
        _ => Err(format!("no such line: {line}").into()),
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: grow FILE")?;
    let mut growth = Grower::open(open(&path)?, b"key")?.begin();
    for line in stdin().lock().lines() {
        let line = line?;
        if line != "c" {
            step(&mut growth, &line)?;
            continue;
        }
        let committed = |growth: Growth<File>| -> Result<_, GrowError> {
            let grower = growth.commit()?;
            let said = (grower.dead_pages(), grower.pages());
            Ok((grower.begin(), said))
        };
        let (next, (dead, pages)) = committed(growth)?;
        growth = next;
        writeln!(stdout(), "{dead} {pages}")?;
        stdout().flush()?;
    }
    Ok(())
}
