//! From the text of a file to settings and errors.

mod effective;
mod generated;
mod refusals;
mod settings;

use std::path::Path;

use super::parse::parse;
use super::{Overrides, Settings, build};

fn settings(text: &str) -> Result<Settings, String> {
    let file = parse(Path::new("larder.yaml"), text).map_err(|error| error.to_string())?;
    build(file, Overrides::default()).map_err(|error| error.to_string())
}
