//! Pages as values. Parsing is a pure function on bytes and finds every flaw that lies within the
//! page; what was parsed can be read without further checks.

use bytes::Bytes;

/// A page's header: id, kind, number of elements, pages that belong to it beside the first.
pub(super) const HEADER_BYTES: usize = 16;
/// An element of a branch or leaf page; its key and value lie behind all elements.
pub(super) const ELEMENT_BYTES: usize = 16;
/// Longest key (bbolt `bucket.go` MaxKeySize).
pub(super) const KEY_BYTES_MAX: usize = 32_768;
/// Longest value (bbolt MaxValueSize).
pub(super) const VALUE_BYTES_MAX: usize = (1 << 31) - 2;
/// Elements a page may have; the next number stands for more in a free list.
pub(super) const ELEMENTS_MAX: usize = 0xFFFE;
/// What a bucket's row begins with: the number of its first page and its sequence.
pub(super) const BUCKET_BYTES: usize = 16;
/// Page sizes that bbolt looks for (bbolt `db.go` getPageSizeFromSecondMeta), and a smaller one
/// that it can be told to use.
pub(super) const PAGE_BYTES_MIN: usize = 512;
pub(super) const PAGE_BYTES_MAX: usize = 1024 << 14;

/// Flag of a row that is a bucket.
const BUCKET_FLAG: u32 = 1;
const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;
/// Bytes of a meta page in use, without its header.
const META_BYTES: usize = 64;
/// Of these, the bytes that the checksum behind them covers.
const SUMMED_BYTES: usize = META_BYTES - 8;
/// In place of the free list's page when none is written (bbolt: NoFreelistSync).
const NO_FREELIST: u64 = u64::MAX;

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_le_bytes)
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// FNV-1a with 64 bits.
pub(super) fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// What a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Branch,
    Leaf,
    Meta,
    Freelist,
}

impl Kind {
    fn flag(self) -> u16 {
        match self {
            Kind::Branch => 0x01,
            Kind::Leaf => 0x02,
            Kind::Meta => 0x04,
            Kind::Freelist => 0x10,
        }
    }

    fn of(flags: u16) -> Option<Kind> {
        let kinds = [Kind::Branch, Kind::Leaf, Kind::Meta, Kind::Freelist];
        kinds.into_iter().find(|kind| kind.flag() == flags)
    }
}

/// A page's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub id: u64,
    pub kind: Kind,
    pub count: u16,
    pub overflow: u32,
}

impl Header {
    pub(super) fn parse(page: &[u8]) -> Result<Header, String> {
        if page.len() < HEADER_BYTES {
            return Err(format!("has {} bytes, too few for a header", page.len()));
        }
        let flags = u16_at(page, 8);
        let kind = Kind::of(flags).ok_or_else(|| format!("is of unknown kind {flags:#x}"))?;
        let (count, overflow) = (u16_at(page, 10), u32_at(page, 12));
        Ok(Header { id: u64_at(page, 0), kind, count, overflow })
    }

    pub(super) fn bytes(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&self.id.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.kind.flag().to_le_bytes());
        bytes[10..12].copy_from_slice(&self.count.to_le_bytes());
        bytes[12..].copy_from_slice(&self.overflow.to_le_bytes());
        bytes
    }
}

/// A meta page: the state of the file as of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Bytes of a page.
    pub page_bytes: u32,
    /// First page of the root bucket.
    pub root: u64,
    /// First page of the free list, if one is written.
    pub freelist: Option<u64>,
    /// Pages that were ever used: every page's number is below.
    pub pages: u64,
    /// The transaction that wrote it.
    pub txid: u64,
}

impl Meta {
    /// Reads a meta page: its first bytes are enough.
    pub(super) fn parse(page: &[u8]) -> Result<Meta, String> {
        let Some(meta) = page.get(HEADER_BYTES..HEADER_BYTES + META_BYTES) else {
            return Err("the file ends before it".to_owned());
        };
        if u32_at(meta, 0) != MAGIC {
            return Err("does not begin with bbolt's number".to_owned());
        }
        if u32_at(meta, 4) != VERSION {
            return Err(format!("is of version {}, not {VERSION}", u32_at(meta, 4)));
        }
        if u64_at(meta, SUMMED_BYTES) != checksum(&meta[..SUMMED_BYTES]) {
            return Err("its checksum is wrong".to_owned());
        }
        let page_bytes = u32_at(meta, 8);
        let size = page_bytes as usize;
        if !size.is_power_of_two() || !(PAGE_BYTES_MIN..=PAGE_BYTES_MAX).contains(&size) {
            return Err(format!("says that pages have {page_bytes} bytes"));
        }
        let freelist = Some(u64_at(meta, 32)).filter(|page| *page != NO_FREELIST);
        let meta = Meta {
            page_bytes,
            root: u64_at(meta, 16),
            freelist,
            pages: u64_at(meta, 40),
            txid: u64_at(meta, 48),
        };
        if meta.root < 2 || meta.root >= meta.pages {
            return Err(format!("names page {} of {} as the root", meta.root, meta.pages));
        }
        if meta.freelist.is_some_and(|page| page < 2 || page >= meta.pages) {
            return Err(format!("names a page outside of {} as the free list", meta.pages));
        }
        Ok(meta)
    }

    /// The whole page, as page `id`.
    pub(super) fn page(&self, id: u64) -> Vec<u8> {
        let mut page = Vec::with_capacity(self.page_bytes as usize);
        let header = Header { id, kind: Kind::Meta, count: 0, overflow: 0 };
        page.extend_from_slice(&header.bytes());
        for number in [MAGIC, VERSION, self.page_bytes, 0] {
            page.extend_from_slice(&number.to_le_bytes());
        }
        let freelist = self.freelist.unwrap_or(NO_FREELIST);
        for number in [self.root, 0, freelist, self.pages, self.txid] {
            page.extend_from_slice(&number.to_le_bytes());
        }
        let sum = checksum(&page[HEADER_BYTES..]);
        page.extend_from_slice(&sum.to_le_bytes());
        page.resize(self.page_bytes as usize, 0);
        page
    }
}

/// A branch or leaf page with all its bytes. Its elements lie within it, apart from each other,
/// and their keys ascend.
#[derive(Clone, Debug)]
pub(super) struct Node {
    bytes: Bytes,
    leaf: bool,
    count: usize,
}

/// Where an element's key and value lie in the page.
struct Place {
    key: usize,
    value: usize,
    end: usize,
}

impl Node {
    /// `bytes` are those of the page and of the pages that belong to it.
    pub(super) fn parse(bytes: Bytes, header: &Header) -> Result<Node, String> {
        let leaf = match header.kind {
            Kind::Leaf => true,
            Kind::Branch => false,
            Kind::Meta | Kind::Freelist => {
                return Err(format!("is a {:?} page, not one of a tree", header.kind));
            }
        };
        let node = Node { bytes, leaf, count: usize::from(header.count) };
        let data_at = HEADER_BYTES + node.count * ELEMENT_BYTES;
        if data_at > node.bytes.len() {
            return Err(format!("is too small for its {} elements", node.count));
        }
        if node.count == 0 && !leaf {
            return Err("is a branch without elements".to_owned());
        }
        let mut used = data_at;
        for i in 0..node.count {
            let (start, key, value) = node.sizes(i);
            if key == 0 || key > KEY_BYTES_MAX {
                return Err(format!("element {i} has a key of {key} bytes"));
            }
            if start < data_at || start.saturating_add(key + value) > node.bytes.len() {
                return Err(format!("element {i} lies outside of the page"));
            }
            used += key + value;
            if i > 0 && node.key_bytes(i - 1) >= node.key_bytes(i) {
                return Err(format!("element {i} is not behind the one before it"));
            }
        }
        if used > node.bytes.len() {
            return Err("has elements that share bytes".to_owned());
        }
        Ok(node)
    }

    /// Start of an element's key and the lengths of key and value.
    fn sizes(&self, i: usize) -> (usize, usize, usize) {
        let at = HEADER_BYTES + i * ELEMENT_BYTES;
        let number = |offset| u32_at(&self.bytes, at + offset) as usize;
        if self.leaf {
            (at + number(4), number(8), number(12))
        } else {
            (at + number(0), number(4), 0)
        }
    }

    fn place(&self, i: usize) -> Place {
        let (start, key, value) = self.sizes(i);
        Place { key: start, value: start + key, end: start + key + value }
    }

    fn key_bytes(&self, i: usize) -> &[u8] {
        let place = self.place(i);
        &self.bytes[place.key..place.value]
    }

    pub(super) fn is_leaf(&self) -> bool {
        self.leaf
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn key(&self, i: usize) -> Bytes {
        let place = self.place(i);
        self.bytes.slice(place.key..place.value)
    }

    /// A leaf's value; for a row that is a bucket see [`parse_bucket`].
    pub(super) fn value(&self, i: usize) -> Bytes {
        let place = self.place(i);
        self.bytes.slice(place.value..place.end)
    }

    /// Whether a leaf's row is a bucket.
    pub(super) fn is_bucket(&self, i: usize) -> bool {
        u32_at(&self.bytes, HEADER_BYTES + i * ELEMENT_BYTES) & BUCKET_FLAG != 0
    }

    /// A branch's page below.
    pub(super) fn child(&self, i: usize) -> u64 {
        u64_at(&self.bytes, HEADER_BYTES + i * ELEMENT_BYTES + 8)
    }
}

/// A row that is a bucket: its first page, or its only one.
pub(super) fn parse_bucket(value: &Bytes) -> Result<(u64, Option<Node>), String> {
    if value.len() < BUCKET_BYTES {
        return Err(format!("a bucket's row has {} bytes", value.len()));
    }
    let root = u64_at(value, 0);
    if root != 0 {
        return Ok((root, None));
    }
    let page = value.slice(BUCKET_BYTES..);
    let inside = |reason| format!("a page inside of a row {reason}");
    let header = Header::parse(&page).map_err(inside)?;
    if header.kind != Kind::Leaf {
        return Err(inside(format!("is a {:?} page", header.kind)));
    }
    Ok((0, Some(Node::parse(page, &header).map_err(inside)?)))
}

/// The numbers on a free list's page and those that belong to it.
pub(super) fn parse_freelist(
    page: &[u8],
    header: &Header,
) -> Result<impl Iterator<Item = u64>, String> {
    let mut start = HEADER_BYTES;
    let mut count = u64::from(header.count);
    if usize::from(header.count) > ELEMENTS_MAX {
        count = u64_at(page, start);
        start += 8;
    }
    let (numbers, _) = page.get(start..).unwrap_or_default().as_chunks::<8>();
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let Some(numbers) = numbers.get(..count) else {
        return Err(format!("is too small for a free list of {count} pages"));
    };
    Ok(numbers.iter().map(|number| u64::from_le_bytes(*number)))
}

/// The value of a bucket's row.
pub(super) fn bucket_value(root: u64, inline: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(BUCKET_BYTES + inline.len());
    value.extend_from_slice(&root.to_le_bytes());
    value.extend_from_slice(&0u64.to_le_bytes());
    value.extend_from_slice(inline);
    value
}

/// A leaf's element: where its data lies, counted from its own start.
pub(super) fn leaf_element(bucket: bool, pos: u32, key: u32, value: u32) -> [u8; ELEMENT_BYTES] {
    let mut bytes = [0; ELEMENT_BYTES];
    let flags = if bucket { BUCKET_FLAG } else { 0 };
    for (at, number) in [flags, pos, key, value].into_iter().enumerate() {
        bytes[at * 4..at * 4 + 4].copy_from_slice(&number.to_le_bytes());
    }
    bytes
}

/// A branch's element.
pub(super) fn branch_element(pos: u32, key: u32, child: u64) -> [u8; ELEMENT_BYTES] {
    let mut bytes = [0; ELEMENT_BYTES];
    bytes[..4].copy_from_slice(&pos.to_le_bytes());
    bytes[4..8].copy_from_slice(&key.to_le_bytes());
    bytes[8..].copy_from_slice(&child.to_le_bytes());
    bytes
}
