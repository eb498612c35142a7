//! Damage to files.

use std::fs;
use std::path::Path;

use super::super::*;
use super::Failed;
use super::expected::State;
use super::operation::{Damage, How};
use super::world::World;

impl World {
    pub(super) fn damage(&mut self, damage: Damage) -> Result<(), Failed> {
        self.has_stale_usage = true;
        self.has_stale_index = true;
        let layout = self.layout();
        match damage {
            Damage::Blob(number, how) => {
                let count = self.model.blobs.len().max(1);
                let found = self.model.blobs.iter().nth(usize::from(number) % count);
                let Some((item, state)) = found.map(|(item, state)| (*item, *state)) else {
                    return Ok(());
                };
                let path = layout.blob(&item.digest);
                self.tally.damaged += 1;
                match spoil(&path, how, state)? {
                    Some(state) => self.model.blobs.insert(item, state),
                    None => self.model.blobs.remove(&item),
                };
            }
            Damage::Tag(of, tag, how) => {
                let path = layout.tag(&of.name(), &tag.tag());
                if !self.model.tags.contains_key(&(of, tag)) {
                    return Ok(());
                }
                match spoil(&path, how, State::Sound)? {
                    Some(_) => self.model.tags.insert((of, tag), None),
                    None => self.model.tags.remove(&(of, tag)),
                };
            }
            Damage::Record(of, item, how) => {
                let path = layout.manifest(&of.name(), &item.digest);
                let Some(state) = self.model.records.get(&(of, item)).copied() else {
                    return Ok(());
                };
                match spoil(&path, how, state)? {
                    Some(state) => self.model.records.insert((of, item), state),
                    None => self.model.records.remove(&(of, item)),
                };
            }
            Damage::Partial(source, item, how) => {
                // What was written by a running ingest is in its hash already.
                if self.is_being_written(source, item) {
                    return Ok(());
                }
                let path = layout.partial(&source.upstream(), &item.digest);
                let key = (source, item);
                if !self.model.partials.contains_key(&key) {
                    return Ok(());
                }
                match spoil(&path, how, State::Sound)? {
                    Some(_) => {
                        let bytes = fs::read(&path).map_err(Failed::of)?;
                        self.model.partials.entry(key).or_default().bytes = bytes;
                    }
                    None => drop(self.model.partials.remove(&key)),
                }
            }
        }
        Ok(())
    }
}

/// Damages a file and keeps its time, as a failing disk does. Returns the new state; `None` if the file is gone.
fn spoil(path: &Path, how: How, state: State) -> Result<Option<State>, Failed> {
    let modified = fs::metadata(path).and_then(|metadata| metadata.modified());
    let (modified, bytes) = (modified.map_err(Failed::of)?, fs::read(path).map_err(Failed::of)?);
    let (bytes, state) = match how {
        How::Flip if !bytes.is_empty() => {
            let state = if state == State::Truncated { state } else { State::Flipped };
            (vec![b'x'; bytes.len()], state)
        }
        How::Truncate if !bytes.is_empty() => (bytes[..bytes.len() / 2].to_vec(), State::Truncated),
        How::Flip | How::Truncate => return Ok(Some(state)),
        How::Delete => {
            fs::remove_file(path).map_err(Failed::of)?;
            return Ok(None);
        }
    };
    fs::write(path, bytes).map_err(Failed::of)?;
    File::open(path).and_then(|file| file.set_modified(modified)).map_err(Failed::of)?;
    Ok(Some(state))
}
