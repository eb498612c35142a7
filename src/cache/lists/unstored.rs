//! Lists of repositories that have no image here, for as long as they are fresh. Clients can ask for any number
//! of them, so they are not stored.

use std::collections::{HashMap, VecDeque};

use crate::oci::ImageName;
use crate::store::{Document, ListRecord};

/// Bytes of the lists in the table, in memory or in files without a name.
const BYTES_MAX: u64 = 8 * 1024 * 1024;
/// What an entry costs beside its text, in bytes.
const ENTRY_BYTES: u64 = 512;
/// What a list in a file counts at least, in bytes: it keeps the file open.
const FILE_BYTES: u64 = 64 * 1024;

type Key = (ImageName, String);

/// A bounded table. The first that came are the first that go.
#[derive(Debug, Default)]
pub(super) struct UnstoredLists {
    lists: HashMap<Key, ListRecord>,
    order: VecDeque<Key>,
    bytes: u64,
}

impl UnstoredLists {
    pub(super) fn get(&self, name: &ImageName, key: &str) -> Option<ListRecord> {
        self.lists.get(&(name.clone(), key.to_owned())).cloned()
    }

    pub(super) fn insert(&mut self, name: &ImageName, key: &str, record: ListRecord) {
        self.remove(name, key);
        let key = (name.clone(), key.to_owned());
        let bytes = cost(&key, &record);
        if bytes > BYTES_MAX {
            return;
        }
        while self.bytes + bytes > BYTES_MAX {
            let Some(oldest) = self.order.pop_front() else { break };
            self.forget(&oldest);
        }
        self.bytes += bytes;
        self.order.push_back(key.clone());
        self.lists.insert(key, record);
    }

    pub(super) fn remove(&mut self, name: &ImageName, key: &str) {
        let key = (name.clone(), key.to_owned());
        if self.forget(&key) {
            self.order.retain(|each| *each != key);
        }
    }

    fn forget(&mut self, key: &Key) -> bool {
        let removed = self.lists.remove(key);
        self.bytes -= removed.as_ref().map_or(0, |record| cost(key, record));
        removed.is_some()
    }
}

fn cost((name, question): &Key, record: &ListRecord) -> u64 {
    let body = match &record.body {
        Document::Memory(bytes) => bytes.len() as u64,
        Document::File { .. } => record.body.length().max(FILE_BYTES),
    };
    let name = name.upstream.as_str().len() + name.repository.as_str().len();
    let next = record.next.as_ref().map_or(0, String::len);
    // Name and question are keys twice.
    body + (2 * (name + question.len()) + next) as u64 + ENTRY_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(bytes: usize) -> ListRecord {
        let body = Document::Memory(vec![b'x'; bytes].into());
        ListRecord { checked: 1, body, next: None, filters_applied: None }
    }

    #[test]
    fn the_oldest_go_and_the_bound_holds() {
        let name = ImageName::new("quay.io".parse().unwrap(), "a".parse().unwrap());
        let mut table = UnstoredLists::default();
        for number in 0..40_000 {
            let key = (number % 20_000).to_string();
            table.insert(&name, &key, record(number % 8_192));
            assert!(table.get(&name, &key).is_some() && table.bytes <= BYTES_MAX);
            assert_eq!(table.lists.len(), table.order.len());
        }
        assert!(table.get(&name, "0").is_none());
        table.insert(&name, "too large", record(9 * 1024 * 1024));
        assert!(table.get(&name, "too large").is_none());
        for number in 0..20_000 {
            table.remove(&name, &number.to_string());
        }
        assert_eq!((table.bytes, table.lists.len(), table.order.len()), (0, 0, 0));
    }
}
