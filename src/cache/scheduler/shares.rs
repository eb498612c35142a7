//! Which jobs may start: the shares of classes and clients, and the choice of the next job.

use super::queue::Class;
use super::{Begun, Length, Next, Shared, State};
use crate::client_address::ClientAddress;

impl Shared {
    /// Whether a class may start a job, or could if a job of the class `released` ended.
    pub(super) fn has_share(&self, state: &State, class: &Class, released: Option<&Class>) -> bool {
        let running = |class: &Class| state.running_without(class, released);
        let own = running(class);
        let free = self.free_without(state, released);
        if let Class::Listed(upstream) = class
            && let Some(max) = state.per_upstream_max.get(upstream)
        {
            return own < *max && free > 0;
        }
        let is_below = |count: usize, parts: usize| count < (self.threads / parts).max(1);
        let unlisted = running(&Class::Unlisted) + running(&Class::Unproven);
        own < free
            && (!class.is_unlisted() || is_below(unlisted, 2))
            && (*class != Class::Unproven || is_below(own, 4))
    }

    /// The free fetchers, if a job of the class `released` ended.
    fn free_without(&self, state: &State, released: Option<&Class>) -> usize {
        let busy = state.running_in_all().saturating_sub(usize::from(released.is_some()));
        self.threads.saturating_sub(busy)
    }

    /// Whether a client may use one more fetcher of a class that may start a job, or could if a job of the class
    /// `released`, which is not this client's, ended.
    pub(super) fn client_has_share(
        &self,
        state: &State,
        class: &Class,
        client: ClientAddress,
        released: Option<&Class>,
    ) -> bool {
        let own = state.running_without(class, released);
        let free = self.free_without(state, released);
        let class_max = match class {
            Class::Listed(upstream) => state.per_upstream_max.get(upstream).copied(),
            Class::Unlisted => Some(self.threads / 2),
            Class::Unproven => Some(self.threads / 4),
            Class::Local => None,
        };
        // The number of fetchers that the class would reach if nothing else changed.
        let reachable = (own + free).div_ceil(2);
        let class_max = match class {
            Class::Listed(_) => class_max.unwrap_or(reachable),
            Class::Unlisted | Class::Unproven | Class::Local => {
                reachable.min(class_max.unwrap_or(reachable))
            }
        };
        let of_client = state.running_of_clients.get(&(class.clone(), client));
        of_client.copied().unwrap_or_default() < (class_max - class_max / 4).max(1)
    }

    /// The next job that may start: a client's job if there is one.
    pub(super) fn pick(&self, state: &mut State) -> Option<Next> {
        let mut unwanted = Vec::new();
        let mut queue = std::mem::take(&mut state.foreground);
        let picked = queue.pick(
            |class| self.has_share(state, class, None),
            |class, client| self.client_has_share(state, class, client, None),
            |job| self.is_unwanted(job),
            &mut unwanted,
        );
        state.foreground = queue;
        let job = match picked {
            Some(job) => Some(Begun::of(job, None)),
            None => self
                .pick_in_background(state, Length::Short)
                .or_else(|| self.pick_in_background(state, Length::Long)),
        };
        if let Some(begun) = &job {
            state.begin(&begun.class, begun.client, begun.background);
        }
        (job.is_some() || !unwanted.is_empty()).then_some(Next { unwanted, job })
    }

    fn pick_in_background(&self, state: &mut State, length: Length) -> Option<Begun> {
        if !self.has_background_fetchers(state, length) {
            return None;
        }
        let mut queue = std::mem::take(state.background(length));
        let picked = queue.pick(
            |class| self.has_background_share(state, class, length),
            |class, client| self.client_has_share(state, class, client, None),
            |_| false,
            &mut Vec::new(),
        );
        *state.background(length) = queue;
        picked.map(|job| Begun::of(job, Some(length)))
    }

    pub(super) fn has_background_fetchers(&self, state: &State, length: Length) -> bool {
        let running = state.running_in_background(length).values().sum::<usize>();
        running < background_max(self.threads, length)
    }

    pub(super) fn has_background_share(
        &self,
        state: &State,
        class: &Class,
        length: Length,
    ) -> bool {
        let running = state.running_in_background(length).get(class).copied().unwrap_or_default();
        let own_max = match class {
            Class::Listed(upstream) => state.per_upstream_max.get(upstream).copied(),
            Class::Unlisted | Class::Unproven | Class::Local => None,
        };
        let share = own_max.unwrap_or(self.threads.div_ceil(2));
        running < background_max(share, length) && self.has_share(state, class, None)
    }

    /// Whether [`Shared::pick`] would find a job.
    pub(super) fn may_pick(&self, state: &State) -> bool {
        let client_may = |class: &Class, client| self.client_has_share(state, class, client, None);
        let foreground = |class: &Class| self.has_share(state, class, None);
        state.foreground.may_pick(foreground, client_may)
            || [(Length::Short, &state.short), (Length::Long, &state.long)].iter().any(
                |(length, queue)| {
                    self.has_background_fetchers(state, *length)
                        && queue.may_pick(
                            |class| self.has_background_share(state, class, *length),
                            client_may,
                        )
                },
            )
    }
}

/// How many of `fetchers` background jobs of at least this length may use.
fn background_max(fetchers: usize, length: Length) -> usize {
    let all = fetchers - fetchers / 4;
    match length {
        Length::Short => all,
        Length::Long => all.saturating_sub((all / 8).max(1)).max(1),
    }
}
