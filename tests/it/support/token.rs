//! Authentication of the fake registry: bearer tokens with their endpoint, and Basic.
//!
//! ```ignore
//! let tokens = TokenServer::new().expires_in(300).user("lea", "secret");
//! registry.require_bearer(&tokens);                 // the endpoint is /token of the same registry
//! registry.require_bearer_from(&tokens, &issuer);   // … or of another one
//! tokens.expire_tokens();
//! tokens.answer_with(TokenAnswer::Refuse(403));
//! ```

use std::sync::{Arc, Mutex};

use serde_json::{Map, Value, json};

use super::answer::Answer;
use super::wire::{Recorded, pairs};
use super::{base64, lock};

/// The usual challenge. `{realm}`, `{service}` and `{scope}` are replaced. At `/v2/`, where there is no repository, the
/// scope is left out. `{error}` becomes `,error="invalid_token"` if the request has an invalid token.
const CHALLENGE: &str = r#"Bearer realm="{realm}",service="{service}",scope="{scope}"{error}"#;

/// The response of the token endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenAnswer {
    /// A new token for valid credentials.
    Issue,
    /// An error with this status.
    Refuse(u16),
    /// 200 with a login page.
    Html,
    /// 200 with a valid token of this length.
    Oversized(usize),
    /// 200 with this JSON text.
    Json(String),
}

/// The JSON fields that carry the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TokenKey {
    Token,
    AccessToken,
}

/// Settings of a token endpoint, and the tokens that it has issued. Clones share the tokens.
#[derive(Clone)]
pub struct TokenServer {
    service: String,
    challenge: String,
    realm: Option<String>,
    realm_query: Option<String>,
    key: TokenKey,
    expires_in: Option<Value>,
    redirect: Option<String>,
    user: Option<(String, String)>,
    /// Several users, each with the repositories that they may pull.
    accounts: Vec<Account>,
    refresh_token: Option<String>,
    /// The action that tag lists require; everything else requires `pull`.
    list_action: &'static str,
    /// The status for a token with another scope.
    other_scope_status: u16,
    book: Arc<Mutex<Book>>,
}

struct Book {
    answer: TokenAnswer,
    issued: usize,
    /// Valid tokens and their scopes.
    valid: Vec<(String, Vec<String>)>,
}

impl TokenServer {
    /// Issues tokens to every client, as `token`, without `expires_in`.
    pub fn new() -> TokenServer {
        let book = Book { answer: TokenAnswer::Issue, issued: 0, valid: Vec::new() };
        TokenServer {
            service: "fake-registry".to_owned(),
            challenge: CHALLENGE.to_owned(),
            realm: None,
            realm_query: None,
            key: TokenKey::Token,
            expires_in: None,
            redirect: None,
            user: None,
            accounts: Vec::new(),
            refresh_token: None,
            list_action: "pull",
            other_scope_status: 401,
            book: Arc::new(Mutex::new(book)),
        }
    }

    /// Issues tokens as `access_token`.
    pub fn access_token(mut self) -> TokenServer {
        self.key = TokenKey::AccessToken;
        self
    }

    /// Claims this lifetime in seconds. Only [`TokenServer::expire_tokens`] ends it.
    pub fn expires_in(mut self, seconds: i64) -> TokenServer {
        self.expires_in = Some(json!(seconds));
        self
    }

    /// Claims a lifetime that is not written as a whole number.
    pub fn expires_in_other_words(mut self, value: Value) -> TokenServer {
        self.expires_in = Some(value);
        self
    }

    /// Redirects to this location until the query contains `moved`.
    pub fn redirects_to(mut self, location: &str) -> TokenServer {
        self.redirect = Some(location.to_owned());
        self
    }

    pub fn service(mut self, service: &str) -> TokenServer {
        self.service = service.to_owned();
        self
    }

    /// Requires this user name and password, sent as Basic.
    pub fn user(mut self, name: &str, password: &str) -> TokenServer {
        self.user = Some((name.to_owned(), password.to_owned()));
        self
    }

    /// Requires one of these users. Tokens have the scopes of the repositories that the user may pull, and no others, as those
    /// of real token services.
    pub fn accounts(mut self, accounts: &[Account]) -> TokenServer {
        self.accounts = accounts.to_vec();
        self
    }

    /// Also issues tokens for a POST with this refresh token. Without it, POST gets 404.
    pub fn refresh_token(mut self, token: &str) -> TokenServer {
        self.refresh_token = Some(token.to_owned());
        self
    }

    /// Adds this query to the realm. Requests without it get 400.
    pub fn realm_query(mut self, query: &str) -> TokenServer {
        self.realm_query = Some(query.to_owned());
        self
    }

    /// Uses this URL as the realm.
    pub fn realm(mut self, url: &str) -> TokenServer {
        self.realm = Some(url.to_owned());
        self
    }

    /// Replaces the challenge, in which `{realm}`, `{service}`, `{scope}` and `{error}` are replaced. Several challenges can
    /// share a line; a line break starts another `WWW-Authenticate` header.
    pub fn challenge(mut self, format: &str) -> TokenServer {
        self.challenge = format.to_owned();
        self
    }

    /// Changes the response of the endpoint from now on.
    pub fn answer_with(&self, answer: TokenAnswer) {
        lock(&self.book).answer = answer;
    }

    /// Revokes all issued tokens.
    pub fn expire_tokens(&self) {
        lock(&self.book).valid.clear();
    }

    /// The number of issued tokens.
    pub fn issued(&self) -> usize {
        lock(&self.book).issued
    }

    /// The response of `/token`.
    pub(super) fn answer(&self, request: &Recorded) -> Answer {
        let has_moved = request.query_value("moved").is_some();
        if let Some(location) = self.redirect.as_ref().filter(|_| !has_moved) {
            let query = request.query.as_deref().unwrap_or("");
            let location = location.replace("{query}", query);
            return Answer::new(307, "", Vec::new()).with("Location", &location);
        }
        let answer = lock(&self.book).answer.clone();
        match answer {
            TokenAnswer::Issue => self.objection(request).unwrap_or_else(|| self.issue(request, 0)),
            TokenAnswer::Oversized(length) => self.issue(request, length),
            TokenAnswer::Refuse(status) => Answer::error(status, "DENIED", "no token for you"),
            TokenAnswer::Json(text) => Answer::new(200, "application/json", text.into_bytes()),
            TokenAnswer::Html => {
                Answer::new(200, "text/html", b"<!doctype html><title>Sign in</title>".to_vec())
            }
        }
    }

    /// The reason why a request gets no token.
    fn objection(&self, request: &Recorded) -> Option<Answer> {
        let refuse = |status, message| Some(Answer::error(status, "UNAUTHORIZED", message));
        if request.method == "POST" {
            let Some(expected) = &self.refresh_token else {
                return refuse(404, "no POST here");
            };
            let shown = form_value(request, "refresh_token");
            return match shown.as_ref() == Some(expected) {
                true => None,
                false => refuse(401, "wrong refresh token"),
            };
        }
        let query = format!("&{}&", request.query.as_deref().unwrap_or(""));
        if self.realm_query.as_ref().is_some_and(|kept| !query.contains(&format!("&{kept}&"))) {
            return refuse(400, "the realm's own query was lost");
        }
        if request.query_value("service").is_some_and(|service| service != self.service) {
            return refuse(400, "tokens for another service");
        }
        match &self.user {
            Some((name, password)) if !shows_basic(request, name, password) => {
                refuse(401, "wrong user name or password")
            }
            None if !self.accounts.is_empty() && account(&self.accounts, request).is_none() => {
                refuse(401, "wrong user name or password")
            }
            _ => None,
        }
    }

    fn issue(&self, request: &Recorded, length: usize) -> Answer {
        let mut book = lock(&self.book);
        book.issued += 1;
        let name = format!("fake-token-{}-", book.issued);
        let token = format!("{name}{}", "x".repeat(length.saturating_sub(name.len())));
        let mut scopes = request.query_values("scope");
        let posted = form_value(request, "scope");
        scopes.extend(posted.iter().flat_map(|text| text.split(' ')).map(str::to_owned));
        if let Some(account) = account(&self.accounts, request) {
            let may = |scope: &String| {
                scope.split(':').nth(1).is_some_and(|repository| account.may_pull(repository))
            };
            scopes.retain(may);
        }
        book.valid.push((token.clone(), scopes));
        let key = match self.key {
            TokenKey::Token => "token",
            TokenKey::AccessToken => "access_token",
        };
        let mut body = Map::new();
        body.insert(key.to_owned(), Value::String(token));
        if let Some(lifetime) = &self.expires_in {
            body.insert("expires_in".to_owned(), lifetime.clone());
        }
        Answer::new(200, "application/json", Value::Object(body).to_string().into_bytes())
    }

    /// Requires this action for tag lists, for which `pull` is not sufficient, as on Azure.
    pub fn scope_of_lists(mut self, action: &'static str) -> TokenServer {
        self.list_action = action;
        self
    }

    /// Refuses a token with another scope with this status instead of 401.
    pub fn refuses_other_scopes_by(mut self, status: u16) -> TokenServer {
        self.other_scope_status = status;
        self
    }

    fn scope(&self, request: &Recorded, repository: &str) -> String {
        let is_list = request.path.ends_with("/tags/list");
        format!("repository:{repository}:{}", if is_list { self.list_action } else { "pull" })
    }

    /// Whether the request has an issued token, whatever its scope.
    fn knows(&self, request: &Recorded) -> bool {
        let shown = request.header("authorization").and_then(|value| value.strip_prefix("Bearer "));
        lock(&self.book).valid.iter().any(|(valid, _)| shown == Some(valid))
    }

    /// Whether the token of the request is valid for its access to this repository (for any, if `None`).
    fn admits(&self, request: &Recorded, repository: Option<&str>) -> bool {
        let Some(token) = request.header("authorization").and_then(|v| v.strip_prefix("Bearer "))
        else {
            return false;
        };
        let scope = repository.map(|name| self.scope(request, name));
        let book = lock(&self.book);
        book.valid.iter().any(|(valid, scopes)| {
            valid == token && scope.as_ref().is_none_or(|scope| scopes.contains(scope))
        })
    }

    fn challenge_lines(&self, request: &Recorded, repository: Option<&str>, own: &str) -> String {
        let mut realm = self.realm.clone().unwrap_or_else(|| own.to_owned());
        if let Some(query) = &self.realm_query {
            realm = format!("{realm}?{query}");
        }
        let error = match request.header("authorization") {
            Some(_) => ",error=\"invalid_token\"",
            None => "",
        };
        let format = match repository {
            Some(name) => self.challenge.replace("{scope}", &self.scope(request, name)),
            None => self.challenge.replace(",scope=\"{scope}\"", "").replace("{scope}", ""),
        };
        format
            .replace("{realm}", &realm)
            .replace("{service}", &self.service)
            .replace("{error}", error)
    }
}

/// A user of a registry.
#[derive(Clone, Debug)]
pub struct Account {
    pub user: String,
    pub password: String,
    /// The repositories that the user may pull.
    pub repositories: Vec<String>,
}

impl Account {
    pub fn new(user: &str, password: &str, repositories: &[&str]) -> Account {
        let repositories = repositories.iter().map(|name| (*name).to_owned()).collect();
        Account { user: user.to_owned(), password: password.to_owned(), repositories }
    }

    fn may_pull(&self, repository: &str) -> bool {
        self.repositories.iter().any(|each| each == repository)
    }
}

fn account<'a>(accounts: &'a [Account], request: &Recorded) -> Option<&'a Account> {
    accounts.iter().find(|each| shows_basic(request, &each.user, &each.password))
}

/// The authentication that a registry requires.
#[derive(Clone, Default)]
pub(super) enum Auth {
    #[default]
    Open,
    /// Tokens, with the URL of their endpoint.
    Bearer(TokenServer, String),
    Basic(String, String),
    /// Offers both. Tokens are issued but refused; the password is accepted.
    Both(TokenServer, String, String, String),
    /// Basic, with several users. One that may not pull a repository gets this status for it.
    Accounts(Vec<Account>, u16),
    /// Basic with the user `AWS` and this password. Any other gets 403, as if it had expired.
    Ecr(String),
}

impl Auth {
    /// The 401 or 403 for a request without the required credentials.
    pub fn refusal(&self, request: &Recorded, repository: Option<&str>) -> Option<Answer> {
        let lines = match self {
            Auth::Open => return None,
            Auth::Basic(name, password) if shows_basic(request, name, password) => return None,
            Auth::Ecr(password) if shows_basic(request, "AWS", password) => return None,
            Auth::Ecr(_) if request.header("authorization").is_some() => {
                let message = "Your authorization token has expired. Reauthenticate and try again.";
                return Some(Answer::error(403, "DENIED", message));
            }
            Auth::Accounts(accounts, status) => match account(accounts, request) {
                Some(account) if repository.is_none_or(|name| account.may_pull(name)) => {
                    return None;
                }
                Some(_) if *status == 404 => {
                    return Some(Answer::error(404, "NAME_UNKNOWN", "hidden"));
                }
                Some(_) => return Some(Answer::error(*status, "DENIED", "not yours")),
                None => "Basic realm=\"fake registry\"".to_owned(),
            },
            Auth::Basic(..) | Auth::Ecr(_) => "Basic realm=\"fake registry\"".to_owned(),
            Auth::Bearer(tokens, _) if tokens.admits(request, repository) => return None,
            Auth::Bearer(tokens, _)
                if tokens.other_scope_status == 403 && tokens.knows(request) =>
            {
                return Some(Answer::error(403, "DENIED", "the token is good for something else"));
            }
            Auth::Bearer(tokens, url) => tokens.challenge_lines(request, repository, url),
            Auth::Both(_, _, name, password) if shows_basic(request, name, password) => {
                return None;
            }
            Auth::Both(tokens, url, ..) => {
                let bearer = tokens.challenge_lines(request, repository, url);
                format!("{bearer}\nBasic realm=\"fake registry\"")
            }
        };
        let mut answer = Answer::error(401, "UNAUTHORIZED", "authentication required");
        for line in lines.lines() {
            answer.headers.push(("WWW-Authenticate".to_owned(), line.to_owned()));
        }
        Some(answer)
    }
}

fn shows_basic(request: &Recorded, name: &str, password: &str) -> bool {
    let expected = format!("Basic {}", base64(format!("{name}:{password}").as_bytes()));
    request.header("authorization") == Some(&expected)
}

fn form_value(request: &Recorded, name: &str) -> Option<String> {
    let form = String::from_utf8_lossy(&request.body).into_owned();
    pairs(&form).into_iter().find(|(key, _)| key == name).map(|(_, value)| value)
}
