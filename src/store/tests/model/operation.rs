//! The operations, and how sequences of them are drawn.

use std::fmt;

use proptest::prelude::*;

use super::content::{BLOBS, ITEMS, Item, Repo, Source, Tagged};

/// One of two processes on the same directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    A,
    B,
}

/// An operation. One that does not apply (a write without an ingest) does nothing.
#[derive(Debug, Clone)]
pub(super) enum Op {
    /// Part of a download, which begins if it must.
    Ingest(By, Source, Item, Act),
    /// A download that ends after a fraction of the content, in quarters.
    Abort(By, Source, Item, u8),
    /// A complete download.
    Fetch(By, Source, Item),
    /// Part of an import, which begins if it must.
    Spool(By, Item, SpoolAct),
    /// Stores a manifest without a name, as a process that is killed before it writes the record.
    Store(By, Item),
    /// Tries to store a manifest under another digest.
    StoreWrong(By, Item),
    /// Stores a manifest, its record, and perhaps a tag.
    Publish(By, Repo, Item, Option<Tagged>),
    Tag(By, Repo, Tagged, Item),
    Untag(By, Repo, Tagged),
    Pull(By, Repo, Tagged),
    PullDigest(By, Repo, Item),
    Pin(By, Pin),
    Unpin(By, Pin),
    Prune(By, Unused, Meanwhile),
    Evict(By, Enough, Meanwhile),
    Scrub(By),
    EmptyQuarantine(By, Was),
    Leftovers(By),
    Count(By),
    Usage(By),
    WriteIndex(By),
    /// Begins an import or export, during which nothing may be removed.
    LockBundle(By),
    UnlockBundle(By),
    /// The process is killed and started again.
    Kill(By),
    /// The process ends and is started again.
    Reopen(By),
    /// The clock jumps by this many seconds: time passes, or someone sets the clock.
    Jump(i64),
    Damage(Damage),
}

/// Part of a download.
#[derive(Debug, Clone, Copy)]
pub(super) enum Act {
    Begin,
    Resume,
    Note(Repo),
    /// Writes the next bytes: a fraction of the content, in quarters.
    Write(u8),
    WriteWrong,
    Drop,
    Discard,
    Finish(Size),
    /// Verifies the content; the process is killed before the rename.
    KillBeforeRename,
}

/// Whether the size was announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Size {
    Announced,
    Unknown,
}

/// Part of an import.
#[derive(Debug, Clone, Copy)]
pub(super) enum SpoolAct {
    Begin,
    Finish,
    FinishWrong,
    Drop,
}

/// What the quarantined blobs are: a loose cable makes blobs look damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Was {
    Damaged,
    Sound,
}

/// A pattern of pins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Pin {
    Repository(Repo),
    Tag(Repo, Tagged),
    Digest(Repo, Item),
    AllOfQuay,
}

impl Pin {
    pub(super) fn pattern(self) -> String {
        match self {
            Pin::Repository(of) => of.name().to_string(),
            Pin::Tag(of, tag) => format!("{}:{}", of.name(), tag.tag()),
            Pin::Digest(of, item) => format!("{}@{}", of.name(), item.digest),
            Pin::AllOfQuay => "quay.io/*".to_owned(),
        }
    }
}

/// The images that a prune removes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Unused {
    Any,
    Seconds(u64),
}

/// When an eviction has freed enough: after this many questions.
#[derive(Debug, Clone, Copy)]
pub(super) enum Enough {
    Never,
    After(u8),
}

/// What happens during a removal, at its n-th request whether to continue.
#[derive(Clone)]
pub(super) enum Meanwhile {
    Nothing,
    /// The removal is stopped.
    Stop(u8),
    /// The other process does something.
    Other(u8, Box<Op>),
}

impl fmt::Debug for Meanwhile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Meanwhile::Nothing => f.write_str("Nothing"),
            Meanwhile::Stop(at) => write!(f, "Stop({at})"),
            Meanwhile::Other(at, op) => write!(f, "Other({at}, Box::new(Op::{op:?}))"),
        }
    }
}

/// Damage that something else does to the directory.
#[derive(Debug, Clone, Copy)]
pub(super) enum Damage {
    /// Of one of the blobs that exist: the number is taken modulo their count.
    Blob(u8, How),
    Tag(Repo, Tagged, How),
    Record(Repo, Item, How),
    Partial(Source, Item, How),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// Other bytes of the same length.
    Flip,
    Truncate,
    Delete,
}

/// An operation that is printed on one line, so that failures are readable.
#[derive(Clone)]
pub(super) struct Line(pub(super) Op);

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Op::{:?}", self.0)
    }
}

/// Durations of clock jumps in seconds. No sum of a few is close to the grace period or another limit.
const JUMPS: [i64; 5] = [71, 307, 661, 4_013, 691_217];

pub(super) fn sequences(longest: usize) -> impl Strategy<Value = Vec<Line>> {
    proptest::collection::vec(operation().prop_map(Line), 1..=longest)
}

fn by() -> impl Strategy<Value = By> {
    prop_oneof![3 => Just(By::A), 2 => Just(By::B)]
}

fn source() -> impl Strategy<Value = Source> {
    prop_oneof![4 => Just(Source::Quay), 1 => Just(Source::Mirror)]
}

fn repo() -> impl Strategy<Value = Repo> {
    prop_oneof![4 => Just(Repo::Team), 1 => Just(Repo::TeamApp), 2 => Just(Repo::Docker)]
}

fn tagged() -> impl Strategy<Value = Tagged> {
    prop_oneof![Just(Tagged::V1), Just(Tagged::V2)]
}

fn blob() -> impl Strategy<Value = Item> {
    (0..BLOBS).prop_map(Item)
}

/// Two of the blobs, so that operations on partials often meet.
fn partial() -> impl Strategy<Value = Item> {
    prop_oneof![4 => Just(Item(3)), 4 => Just(Item(1)), 1 => blob()]
}

fn manifest() -> impl Strategy<Value = Item> {
    (BLOBS..ITEMS).prop_map(Item)
}

fn item() -> impl Strategy<Value = Item> {
    prop_oneof![3 => blob(), 2 => manifest()]
}

fn pin() -> impl Strategy<Value = Pin> {
    prop_oneof![
        1 => repo().prop_map(Pin::Repository),
        3 => (repo(), tagged()).prop_map(|(of, tag)| Pin::Tag(of, tag)),
        3 => (repo(), manifest()).prop_map(|(of, item)| Pin::Digest(of, item)),
        1 => Just(Pin::AllOfQuay),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => Just(Act::Begin),
        1 => Just(Act::Resume),
        1 => repo().prop_map(Act::Note),
        4 => (1..=4u8).prop_map(Act::Write),
        1 => Just(Act::WriteWrong),
        2 => Just(Act::Drop),
        1 => Just(Act::Discard),
        2 => Just(Act::Finish(Size::Announced)),
        1 => Just(Act::Finish(Size::Unknown)),
        1 => Just(Act::KillBeforeRename),
    ]
}

/// What commits content or changes names.
fn commit() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (by(), source(), blob()).prop_map(|(by, source, item)| Op::Fetch(by, source, item)),
        6 => (by(), repo(), manifest(), proptest::option::weighted(0.7, tagged()))
            .prop_map(|(by, of, item, tag)| Op::Publish(by, of, item, tag)),
        2 => (by(), repo(), tagged(), manifest())
            .prop_map(|(by, of, tag, item)| Op::Tag(by, of, tag, item)),
        1 => (by(), repo(), tagged()).prop_map(|(by, of, tag)| Op::Untag(by, of, tag)),
        1 => (by(), repo(), tagged()).prop_map(|(by, of, tag)| Op::Pull(by, of, tag)),
        1 => (by(), repo(), manifest()).prop_map(|(by, of, item)| Op::PullDigest(by, of, item)),
        1 => (by(), manifest()).prop_map(|(by, item)| Op::Store(by, item)),
        2 => (by(), pin()).prop_map(|(by, pin)| Op::Pin(by, pin)),
    ]
}

fn meanwhile() -> impl Strategy<Value = Meanwhile> {
    let at = || prop_oneof![3 => 1..=6u8, 1 => 7..=20u8];
    prop_oneof![
        5 => Just(Meanwhile::Nothing),
        1 => at().prop_map(Meanwhile::Stop),
        5 => (at(), commit()).prop_map(|(at, op)| Meanwhile::Other(at, Box::new(op))),
    ]
}

fn unused() -> impl Strategy<Value = Unused> {
    prop_oneof![
        2 => Just(Unused::Any),
        1 => Just(Unused::Seconds(1_009)),
        1 => Just(Unused::Seconds(5_003)),
    ]
}

fn enough() -> impl Strategy<Value = Enough> {
    prop_oneof![2 => Just(Enough::Never), 2 => (0..4u8).prop_map(Enough::After)]
}

fn damage() -> impl Strategy<Value = Damage> {
    let how = || prop_oneof![Just(How::Flip), Just(How::Truncate), Just(How::Delete)];
    prop_oneof![
        4 => (0..8u8, how()).prop_map(|(number, how)| Damage::Blob(number, how)),
        1 => (repo(), tagged(), how()).prop_map(|(of, tag, how)| Damage::Tag(of, tag, how)),
        1 => (repo(), manifest(), how()).prop_map(|(of, item, how)| Damage::Record(of, item, how)),
        1 => (source(), partial(), how()).prop_map(|(source, item, how)| Damage::Partial(source, item, how)),
    ]
}

fn operation() -> impl Strategy<Value = Op> {
    let spool = prop_oneof![
        3 => Just(SpoolAct::Begin),
        2 => Just(SpoolAct::Finish),
        1 => Just(SpoolAct::FinishWrong),
        1 => Just(SpoolAct::Drop)
    ];
    let jump = prop_oneof![
        1 => Just(JUMPS[0]), 1 => Just(JUMPS[1]), 6 => Just(JUMPS[2]), 6 => Just(JUMPS[3]),
        1 => Just(JUMPS[4])
    ];
    let backward = prop_oneof![4 => Just(1i64), 1 => Just(-1)];
    prop_oneof![
        28 => commit(),
        12 => (by(), source(), partial(), act())
            .prop_map(|(by, source, item, act)| Op::Ingest(by, source, item, act)),
        5 => (by(), source(), partial(), 1..=4u8)
            .prop_map(|(by, source, item, quarters)| Op::Abort(by, source, item, quarters)),
        3 => (by(), item(), spool).prop_map(|(by, item, act)| Op::Spool(by, item, act)),
        1 => (by(), manifest()).prop_map(|(by, item)| Op::StoreWrong(by, item)),
        2 => (by(), pin()).prop_map(|(by, pin)| Op::Unpin(by, pin)),
        6 => (by(), unused(), meanwhile())
            .prop_map(|(by, unused, meanwhile)| Op::Prune(by, unused, meanwhile)),
        12 => (by(), enough(), meanwhile())
            .prop_map(|(by, enough, meanwhile)| Op::Evict(by, enough, meanwhile)),
        7 => by().prop_map(Op::Scrub),
        2 => by().prop_map(|by| Op::EmptyQuarantine(by, Was::Damaged)),
        3 => by().prop_map(|by| Op::EmptyQuarantine(by, Was::Sound)),
        1 => by().prop_map(Op::Leftovers),
        2 => by().prop_map(Op::Count),
        2 => by().prop_map(Op::Usage),
        1 => by().prop_map(Op::WriteIndex),
        1 => by().prop_map(Op::LockBundle),
        8 => by().prop_map(Op::UnlockBundle),
        3 => by().prop_map(Op::Kill),
        2 => by().prop_map(Op::Reopen),
        14 => (jump, backward).prop_map(|(seconds, sign)| Op::Jump(seconds * sign)),
        13 => damage().prop_map(Op::Damage),
    ]
}
