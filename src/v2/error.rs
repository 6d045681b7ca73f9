//! Why an operation was refused.

/// etcd's numbers for errors of the store (etcd v3.5.17 `server/etcdserver/api/v2error/error.go`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Code {
    KeyNotFound = 100,
    TestFailed = 101,
    NotFile = 102,
    NotDir = 104,
    NodeExist = 105,
    RootReadOnly = 107,
    DirNotEmpty = 108,
    EventIndexCleared = 401,
}

impl Code {
    /// etcd's words for it.
    pub fn message(self) -> &'static str {
        match self {
            Code::KeyNotFound => "Key not found",
            Code::TestFailed => "Compare failed",
            Code::NotFile => "Not a file",
            Code::NotDir => "Not a directory",
            Code::NodeExist => "Key already exists",
            Code::RootReadOnly => "Root is read only",
            Code::DirNotEmpty => "Directory not empty",
            Code::EventIndexCleared => "The event in requested index is outdated and cleared",
        }
    }
}

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// One that etcd has a number for.
    #[error("{} ({cause})", code.message())]
    Coded {
        /// What is wrong.
        code: Code,
        /// Where, mostly a path.
        cause: String,
        /// The store's index at that moment.
        index: u64,
    },
    /// An update of a directory, for which etcd 3.5 has no number.
    #[error("nodePath {path} : Not a file ()")]
    UpdateOfDir {
        /// The directory.
        path: String,
    },
    /// More than [`super::LEVELS_MAX`] levels. Only rusd says so.
    #[error("the path has more than {} levels", super::LEVELS_MAX)]
    TooDeep,
    /// A request whose method is none.
    #[error("etcdserver: unknown method")]
    UnknownMethod,
}

impl Error {
    pub(super) fn new(code: Code, cause: &[u8], index: u64) -> Error {
        Error::Coded { code, cause: text(cause), index }
    }

    /// etcd's number for it, if it has one.
    pub fn code(&self) -> Option<Code> {
        match self {
            Error::Coded { code, .. } => Some(*code),
            _ => None,
        }
    }
}

/// As Go's JSON would show it: each byte that is no UTF-8 is one U+FFFD.
fn text(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    text
}
