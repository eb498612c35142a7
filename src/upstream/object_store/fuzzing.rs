//! Fuzz target: the documents of an object store.

use super::xml;

/// Input: a document.
pub(crate) fn object_store(data: &[u8]) {
    if let Some(error) = xml::error(data) {
        assert_ne!(error.region.as_deref(), Some(""));
    }
    match xml::objects(data) {
        Ok(page) => {
            assert!(page.next.is_none_or(|next| !next.is_empty()));
            assert!(page.objects.len() <= data.len());
        }
        Err(reason) => assert!(reason.len() <= data.len() + 200, "{reason}"),
    }
    if let Ok(id) = xml::upload_id(data) {
        assert!(!id.is_empty());
    }
    let _ = (xml::uploads(data), xml::completed(data), xml::first_undeleted(data));
    if let Ok(listed) = xml::parts(data) {
        // What is sent back must be a document, whatever the store has sent.
        let request = xml::complete_request(&listed.items);
        assert!(request.matches("<Part>").count() == listed.items.len(), "{request}");
        assert!(xml::error(request.as_bytes()).is_none());
    }
    // Keys of a list can be deleted.
    if let Ok(text) = std::str::from_utf8(data)
        && let Some(request) = xml::delete_request(&[text.to_owned()])
    {
        assert_eq!(xml::only_key(&request).as_deref(), Some(text));
    }
}
