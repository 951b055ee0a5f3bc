//! Who is next: the smallest priority first; clients of one priority in turn; a client's own requests in order.

use super::Job;
use crate::caller::Client;
use std::collections::{BTreeMap, HashMap, VecDeque};

/// Jobs that wait.
#[derive(Default)]
pub(super) struct Queue {
    levels: BTreeMap<i64, Level>,
    len: usize,
}

/// One priority.
#[derive(Default)]
struct Level {
    /// Clients with jobs, the next one in front.
    turns: VecDeque<Client>,
    jobs: HashMap<Client, VecDeque<Job>>,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn push(&mut self, job: Job) {
        let level = self.levels.entry(job.priority).or_default();
        let jobs = level.jobs.entry(job.client).or_default();
        if jobs.is_empty() {
            level.turns.push_back(job.client);
        }
        jobs.push_back(job);
        self.len += 1;
    }

    pub(super) fn pop(&mut self) -> Option<Job> {
        let mut level = self.levels.first_entry()?;
        let Level { turns, jobs } = level.get_mut();
        let client = turns.pop_front()?;
        let theirs = jobs.get_mut(&client)?;
        let job = theirs.pop_front();
        match theirs.is_empty() {
            true => _ = jobs.remove(&client),
            false => turns.push_back(client),
        }
        if turns.is_empty() {
            level.remove();
        }
        self.len -= usize::from(job.is_some());
        job
    }

    /// Keeps the jobs that are still wanted, in their places.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&Job) -> bool) {
        for level in self.levels.values_mut() {
            level.jobs.values_mut().for_each(|jobs| jobs.retain(&mut keep));
            level.jobs.retain(|_, jobs| !jobs.is_empty());
            level.turns.retain(|client| level.jobs.contains_key(client));
        }
        self.levels.retain(|_, level| !level.turns.is_empty());
        self.len = self.levels.values().flat_map(|level| level.jobs.values()).map(VecDeque::len).sum();
    }

    /// Takes all of them.
    pub(super) fn drain(&mut self) -> Vec<Job> {
        std::iter::from_fn(|| self.pop()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Journey;
    use std::time::Instant;
    use tokio::sync::mpsc::unbounded_channel;

    /// Named by its one token.
    fn job(name: u32, client: u64, priority: i64) -> Job {
        Job {
            prompt: vec![name],
            prompt_param: "prompt",
            choices: Vec::new(),
            received: Instant::now(),
            client: Client::Key(client),
            priority,
            deadline: None,
            aside: std::sync::Arc::default(),
            journey: Journey::begin(std::sync::Arc::default(), None, "POST", "/".to_owned(), None, None),
            events: unbounded_channel().0,
        }
    }

    fn names(queue: &mut Queue) -> Vec<u32> {
        queue.drain().iter().map(|job| job.prompt[0]).collect()
    }

    #[test]
    fn clients_take_turns() {
        let mut queue = Queue::default();
        for (name, client) in [(1, 0), (2, 0), (3, 0), (4, 1), (5, 2), (6, 1)] {
            queue.push(job(name, client, 0));
        }
        assert_eq!(queue.len(), 6);
        assert_eq!(names(&mut queue), [1, 4, 5, 2, 6, 3]);
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn who_comes_later_does_not_wait_for_all_of_another() {
        let mut queue = Queue::default();
        (0..5).for_each(|name| queue.push(job(name, 0, 0)));
        assert_eq!(queue.pop().map(|job| job.prompt[0]), Some(0));
        queue.push(job(9, 1, 0));
        assert_eq!(names(&mut queue), [1, 9, 2, 3, 4]);
    }

    #[test]
    fn smaller_priorities_go_first() {
        let mut queue = Queue::default();
        for (name, client, priority) in [(1, 0, 0), (2, 0, -1), (3, 1, 5), (4, 1, -1), (5, 1, 0)] {
            queue.push(job(name, client, priority));
        }
        assert_eq!(names(&mut queue), [2, 4, 1, 5, 3]);
    }

    #[test]
    fn what_is_not_wanted_leaves_no_gap() {
        let mut queue = Queue::default();
        for (name, client) in [(1, 0), (2, 1), (3, 0), (4, 2)] {
            queue.push(job(name, client, 0));
        }
        queue.retain(|job| job.prompt[0] % 2 == 1);
        assert_eq!(queue.len(), 2);
        queue.push(job(6, 1, 0));
        assert_eq!(names(&mut queue), [1, 6, 3]);
        queue.push(job(7, 0, 3));
        queue.retain(|_| false);
        assert!(queue.pop().is_none());
    }
}
