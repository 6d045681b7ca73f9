//! Paths of the tree, which are bytes.

/// The path from the root, without empty parts, `.` and `..`
/// (as Go's `path.Clean(path.Join("/", path))`).
pub fn clean(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    let mut clean = Vec::with_capacity(path.len() + 1);
    for part in parts {
        clean.push(b'/');
        clean.extend_from_slice(part);
    }
    if clean.is_empty() {
        clean.push(b'/');
    }
    clean
}

/// The names on the way to a clean path.
pub fn names(clean: &[u8]) -> impl Iterator<Item = &[u8]> {
    clean.split(|byte| *byte == b'/').filter(|name| !name.is_empty())
}

/// What a path's last part is called; nothing for the root.
pub fn name(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
}

/// A clean path's directory and name.
pub fn split(clean: &[u8]) -> (&[u8], &[u8]) {
    let name = name(clean);
    (&clean[..clean.len() - name.len()], name)
}

/// The path of a directory's child.
pub fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    let dir = dir.strip_suffix(b"/").unwrap_or(dir);
    [dir, b"/", name].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_as_in_go() {
        for (path, clean_path) in [
            ("", "/"),
            ("/", "/"),
            ("a", "/a"),
            ("//a//b/", "/a/b"),
            ("/a/./b/../c", "/a/c"),
            ("../../a", "/a"),
            ("/..", "/"),
            ("/a/...", "/a/..."),
        ] {
            assert_eq!(clean(path.as_bytes()), clean_path.as_bytes(), "{path:?}");
        }
        assert_eq!(split(b"/a/b"), (&b"/a/"[..], &b"b"[..]));
        assert_eq!(split(b"/"), (&b"/"[..], &b""[..]));
        assert_eq!((join(b"/", b"a"), join(b"/a", b"b")), (b"/a".to_vec(), b"/a/b".to_vec()));
    }
}
