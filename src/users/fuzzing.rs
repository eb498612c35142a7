//! Fuzz target: htpasswd files.

use super::{COST_MAX, COST_MIN, parse};

/// Input: the file.
pub(crate) fn htpasswd(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let users = match parse(text) {
        Ok(users) => users,
        Err((line, reason)) => {
            assert!((1..=text.lines().count().max(1)).contains(&line), "line {line}");
            assert!(reason.len() < 100);
            return;
        }
    };
    assert!(!users.is_empty());
    let mut written = String::new();
    for (user, hash) in &users {
        assert!(!user.is_empty() && !user.contains(':'), "{user:?}");
        // The cost of a check is bounded, whatever the file says.
        let parts: bcrypt::HashParts = hash.parse().expect("accepted hashes are valid");
        assert!((COST_MIN..=COST_MAX).contains(&parts.get_cost()), "{hash}");
        // A check with this hash must not fail, and must not take long.
        if parts.get_cost() == COST_MIN {
            bcrypt::verify("password", hash).expect("an accepted hash can be checked");
        }
        written.push_str(&format!("{user}:{hash}\n"));
    }
    assert_eq!(parse(&written).as_ref(), Ok(&users), "{written}");
}
