//! What refers to blobs: tags and manifests of repositories, the images and graphs that they form, catalogues of all
//! images, `index.json`, and the stored lists of repositories.

mod catalogue;
pub(super) mod images;
pub(super) mod index;
mod lists;
mod refs;
mod seeding;
pub(super) mod walk;

pub use catalogue::{
    Catalogue, CatalogueImage, CatalogueRepository, Content, RepositoryNames, RepositoryTimes,
};
pub use images::{Graph, GraphBlob, GraphManifest, StoredImage};
pub use lists::ListRecord;
