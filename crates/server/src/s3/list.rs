//! One page of a bucket's keys, with what lies under a common prefix rolled up into one entry.

use super::StorageError;
use super::index::{Object, objects_from, require_bucket};
use rusqlite::Connection;

/// What to list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct ListQuery {
    /// Only keys that start with this.
    pub(super) prefix: String,
    /// Roll up keys that share what is before this, after the prefix; empty for no rolling up.
    pub(super) delimiter: String,
    /// Only what comes after this key or common prefix; empty for all.
    pub(super) after: String,
    /// At most this many entries.
    pub(super) limit: usize,
}

/// One page.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct ListPage {
    /// Objects, by key.
    pub(super) objects: Vec<Object>,
    /// Common prefixes, in order.
    pub(super) prefixes: Vec<String>,
    /// Where the next page goes on: the last entry of this one; none when it is the last page.
    pub(super) next: Option<String>,
}

/// Reads a page.
pub(super) fn page(
    index: &Connection,
    bucket: &str,
    query: &ListQuery,
) -> Result<ListPage, StorageError> {
    require_bucket(index, bucket)?;
    let mut page = ListPage::default();
    let mut last = String::new();
    let mut from = start(query);
    while let Some(lower) = from.take() {
        // One more than there is room for tells whether there is a next page.
        let room = query.limit - page.len();
        let found = objects_from(index, bucket, &lower, room + 1)?;
        for object in found {
            if !object.key.starts_with(&query.prefix) {
                return Ok(page);
            }
            if page.len() == query.limit {
                // Asking for no entries is not asking for a next page.
                page.next = (query.limit > 0).then_some(last);
                return Ok(page);
            }
            match common_prefix(&object.key, query) {
                Some(prefix) => {
                    last = prefix.to_owned();
                    from = successor(prefix);
                    page.prefixes.push(last.clone());
                    break;
                }
                None => {
                    last.clone_from(&object.key);
                    page.objects.push(object);
                }
            }
        }
    }
    Ok(page)
}

impl ListPage {
    fn len(&self) -> usize {
        self.objects.len() + self.prefixes.len()
    }
}

/// The smallest key that may be listed.
fn start(query: &ListQuery) -> Option<String> {
    if query.after.is_empty() {
        return Some(query.prefix.clone());
    }
    if common_prefix(&query.after, query) == Some(query.after.as_str()) {
        // The page before ended with this common prefix: what lies under it is done.
        return successor(&query.after);
    }
    let next = format!("{}\0", query.after);
    Some(next.max(query.prefix.clone()))
}

/// What a key is rolled up into.
fn common_prefix<'key>(key: &'key str, query: &ListQuery) -> Option<&'key str> {
    if query.delimiter.is_empty() {
        return None;
    }
    let rest = key.strip_prefix(&query.prefix)?;
    let at = rest.find(&query.delimiter)?;
    Some(&key[..query.prefix.len() + at + query.delimiter.len()])
}

/// The smallest text that is larger than every text with this prefix; none when there is none.
fn successor(prefix: &str) -> Option<String> {
    let mut text = prefix.to_owned();
    while let Some(last) = text.pop() {
        // UTF-8 keeps the order of the code points, between which there is one gap.
        let next = match last {
            '\u{D7FF}' => Some('\u{E000}'),
            last => char::from_u32(u32::from(last) + 1),
        };
        if let Some(next) = next {
            text.push(next);
            return Some(text);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::index::{Attributes, Blob, Condition, Index, create_bucket, put_object};
    use super::*;
    use dormouse_core::{AccountId, Timestamp};

    fn bucket_of(keys: &[&str]) -> (tempfile::TempDir, Index) {
        let folder = tempfile::tempdir().unwrap();
        let owner = AccountId::parse("000000000000").unwrap();
        let index = Index::open(&folder.path().join("index.db"), &owner).unwrap();
        let fill = |index: &rusqlite::Transaction<'_>| {
            create_bucket(index, "b", &owner, Timestamp(0))?;
            for key in keys {
                let object = Object {
                    key: (*key).to_owned(),
                    blob: Blob {
                        name: (*key).to_owned(),
                        size: 0,
                        etag: String::new(),
                    },
                    modified_at: Timestamp(0),
                    attributes: Attributes::default(),
                };
                put_object(index, "b", &object, &Condition::None)?;
            }
            Ok(())
        };
        index.with(fill).unwrap();
        (folder, index)
    }

    /// Every entry, read in pages of `limit`.
    fn all(index: &Index, prefix: &str, delimiter: &str, limit: usize) -> Vec<String> {
        let mut query = ListQuery {
            prefix: prefix.to_owned(),
            delimiter: delimiter.to_owned(),
            after: String::new(),
            limit,
        };
        let mut seen = Vec::new();
        for _ in 0..100 {
            let page = index.with(|index| page(index, "b", &query)).unwrap();
            assert!(page.len() <= limit);
            let mut entries: Vec<String> = page.objects.into_iter().map(|o| o.key).collect();
            entries.extend(page.prefixes);
            entries.sort();
            assert_eq!(
                page.next
                    .is_some()
                    .then(|| entries.last().cloned())
                    .flatten(),
                page.next
            );
            seen.extend(entries);
            let Some(next) = page.next else { return seen };
            query.after = next;
        }
        panic!("the pages never end");
    }

    #[test]
    fn pages_of_any_size_show_the_same_entries() {
        let keys = [
            "a",
            "a/",
            "a/b",
            "a/b/c",
            "a/z",
            "a0",
            "b/1",
            "b/2",
            "\u{D7FF}/x",
            "\u{E000}",
            "é/1",
            "z//",
            "z//1",
            "z/1",
            "\u{10FFFF}",
            "\u{10FFFF}/\u{10FFFF}",
        ];
        let (_folder, index) = bucket_of(&keys);
        let mut sorted = keys.to_vec();
        sorted.sort_unstable();
        for limit in [1, 2, 3, 5, 100] {
            assert_eq!(all(&index, "", "", limit), sorted, "{limit}");
            assert_eq!(all(&index, "a/", "", limit), ["a/", "a/b", "a/b/c", "a/z"]);
            assert_eq!(all(&index, "a", "/", limit), ["a", "a/", "a0"]);
            assert_eq!(all(&index, "a/", "/", limit), ["a/", "a/b", "a/b/", "a/z"]);
            assert_eq!(all(&index, "z", "//", limit), ["z//", "z/1"]);
            assert_eq!(all(&index, "none", "/", limit), [""; 0]);
            assert_eq!(
                all(&index, "", "/", limit),
                [
                    "a",
                    "a/",
                    "a0",
                    "b/",
                    "z/",
                    "é/",
                    "\u{D7FF}/",
                    "\u{E000}",
                    "\u{10FFFF}",
                    "\u{10FFFF}/"
                ]
            );
        }
    }

    #[test]
    fn a_page_of_nothing_is_the_last() {
        let (_folder, index) = bucket_of(&["a"]);
        let query = ListQuery::default();
        let page = index.with(|index| page(index, "b", &query)).unwrap();
        assert_eq!(page, ListPage::default());
    }

    #[test]
    fn a_successor_is_beyond_everything_with_the_prefix() {
        for prefix in ["a", "a/", "\u{D7FF}", "a\u{10FFFF}"] {
            let next = successor(prefix).unwrap();
            assert!(
                format!("{prefix}\u{10FFFF}\u{10FFFF}") < next,
                "{prefix:?} {next:?}"
            );
        }
        assert_eq!(successor(""), None);
        assert_eq!(successor("\u{10FFFF}"), None);
    }
}
