//! The lease table: who exists, with which TTL, and which keys hang on it. Deadlines are not here.
//! Uses: base, pb
