//! What is left out of a conversation, in the model's own words.
//!
//! Summaries roll: the summary of the first turns is what the next is made from together with the turns that follow, and it is
//! remembered, so that a conversation that grows pays for its newest turns only. They are greedy: the same turns always
//! give the same summary.

use super::{Dropped, Turns, on_thread};
use crate::{
    api::{Conversation, Parameters},
    backend::Backend,
    error::ApiError,
    models::Lease,
    service::{MaxTokens, Start},
    worker::Event,
};
use edgelm_engine::Sampling;
use edgelm_model::Message;
use serde_json::{Value, json};
use std::{
    collections::VecDeque,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Mutex, PoisonError},
};

/// Tokens of a summary at most; a quarter of the context where that is less.
const MOST_TOKENS: usize = 256;
/// Summaries that are remembered.
const REMEMBERED: usize = 64;

/// Summaries of the beginnings of conversations.
#[derive(Default)]
pub(crate) struct Summaries(Mutex<VecDeque<(u64, String)>>);

impl Summaries {
    fn get(&self, key: u64) -> Option<String> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().find(|(other, _)| *other == key).map(|(_, text)| text.clone())
    }

    fn put(&self, key: u64, text: &str) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(other, _)| *other != key);
        known.push_back((key, text.to_owned()));
        if known.len() > REMEMBERED {
            known.pop_front();
        }
    }
}

fn key(messages: &[Message]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for message in messages {
        message.to_string().hash(&mut hasher);
    }
    hasher.finish()
}

impl Lease {
    /// The conversation with a summary in the place of its oldest turns.
    pub(super) async fn summarized(
        &self,
        conversation: Conversation,
        limit: usize,
        parameters: &Parameters,
        start: &Start,
    ) -> Result<(Vec<u32>, Dropped), ApiError> {
        let backend = self.backend();
        let most = MOST_TOKENS.min(limit / 4).max(1);
        // Some tokens around the summary are the template's and the heading's.
        let rest = limit.saturating_sub(most + (limit / 8).min(48));
        let fit = move |turns: Turns, backend: &dyn Backend| turns.fitting(rest, backend);
        let (turns, count, bare) = on_thread(&backend, Turns::new(conversation), start.param, fit).await?;
        if count == 0 {
            return Ok((bare, Dropped::default()));
        }
        let mut summary_tokens = 0;
        let mut summary = String::new();
        let mut done = 0;
        for known in (1..=count).rev() {
            if let Some(text) = self.summaries().get(key(&turns.conversation.messages[turns.oldest(known)])) {
                (summary, done) = (text, known);
                break;
            }
        }
        while done < count {
            // As many turns at once as fit, one at least.
            let mut next = count;
            let prompt = loop {
                let ask = request(&turns, done, next, &summary);
                let prompt = on_thread(&backend, ask, start.param, |ask, backend| ask.prompt(backend)).await?;
                if prompt.len() + most <= self.room() || next == done + 1 {
                    break prompt;
                }
                next = done + (next - done) / 2;
            };
            // A turn too long for the context on its own: its beginning has to do.
            let prompt = shortened(prompt, self.room().saturating_sub(most));
            let (text, tokens) = self.write(prompt, most, parameters, start).await?;
            summary_tokens += tokens;
            summary = text;
            done = next;
            self.summaries().put(key(&turns.conversation.messages[turns.oldest(done)]), &summary);
        }
        let rest = with_summary(turns.without(count), &summary);
        let tokens = on_thread(&backend, rest, start.param, |rest, backend| rest.prompt(backend)).await?;
        // A summary that does not fit is worth less than the turns that do.
        let tokens = if tokens.len() > limit { bare } else { tokens };
        Ok((tokens, Dropped { turns: count, tokens: 0, summary_tokens }))
    }

    /// Runs the model on a prompt of ours.
    async fn write(
        &self,
        prompt: Vec<u32>,
        most: usize,
        parameters: &Parameters,
        start: &Start,
    ) -> Result<(String, usize), ApiError> {
        let greedy = Sampling { temperature: 0.0, repeat_penalty: 1.1, ..Sampling::default() };
        let mut ours = Parameters::new(greedy, MaxTokens::Asked(most));
        ours.priority = parameters.priority;
        ours.timeout = parameters.timeout;
        let (mut events, _) = self.push(prompt, most, &ours, None, start);
        let mut text = String::new();
        while let Some(event) = events.recv().await {
            match event {
                Event::Piece { text: piece, .. } => text.push_str(&piece),
                Event::Finished { generated_tokens, .. } => return Ok((text.trim().to_owned(), generated_tokens)),
                Event::Failed(error) => return Err(error),
            }
        }
        Err(ApiError::Internal)
    }
}

/// The middle is left out: templates need both ends.
fn shortened(mut prompt: Vec<u32>, most: usize) -> Vec<u32> {
    if prompt.len() > most {
        let tail = prompt.split_off(prompt.len() - most / 4);
        prompt.truncate(most - tail.len());
        prompt.extend(tail);
    }
    prompt
}

fn request(turns: &Turns, from: usize, to: usize, summary: &str) -> Conversation {
    let range = turns.oldest(from).end..turns.oldest(to).end;
    let range = if from == 0 { turns.opening..range.end } else { range };
    let mut text =
        String::from("Summarize the conversation below in a few sentences. Keep names, numbers and decisions.\n\n");
    if !summary.is_empty() {
        text.push_str(&format!("Before it: {summary}\n\n"));
    }
    for message in &turns.conversation.messages[range] {
        let role = message["role"].as_str().unwrap_or_default();
        let content = message["content"].as_str().unwrap_or_default();
        text.push_str(&format!("{role}: {content}\n"));
        if let Some(calls) = message["tool_calls"].as_array() {
            text.push_str(&format!("{role} calls: {}\n", Value::from(calls.clone())));
        }
    }
    Conversation { messages: vec![json!({"role": "user", "content": text})], ..Conversation::default() }
}

/// In the system message, or, as not every template has one, in front of the first message.
fn with_summary(mut conversation: Conversation, summary: &str) -> Conversation {
    if let Some(first) = conversation.messages.first_mut() {
        let content = first["content"].as_str().unwrap_or_default();
        let heading = format!("[Summary of the earlier conversation: {summary}]");
        let text = match first["role"] == "system" {
            true => format!("{content}\n\n{heading}"),
            false => format!("{heading}\n\n{content}"),
        };
        first["content"] = text.into();
    }
    conversation
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_go_where_templates_read_them() {
        let put = |role: &str| {
            let messages = vec![json!({"role": role, "content": "c"})];
            with_summary(Conversation { messages, ..Conversation::default() }, "s").messages[0]["content"].clone()
        };
        assert_eq!(put("system"), "c\n\n[Summary of the earlier conversation: s]");
        assert_eq!(put("user"), "[Summary of the earlier conversation: s]\n\nc");
    }

    #[test]
    fn the_oldest_summaries_are_forgotten() {
        let known = Summaries::default();
        (0..=REMEMBERED as u64).for_each(|key| known.put(key, "x"));
        assert!(known.get(0).is_none() && known.get(1).is_some());
    }

    #[test]
    fn long_prompts_keep_both_ends() {
        assert_eq!(shortened((0..10).collect(), 8), [0, 1, 2, 3, 4, 5, 8, 9]);
        assert_eq!(shortened((0..3).collect(), 8), [0, 1, 2]);
    }
}
