//! A conversation in turns: a user's message and all that follows up to the next one.

use crate::{api::Conversation, backend::Backend};
use edgelm_engine::EngineError;
use edgelm_model::Message;
use std::ops::Range;

#[derive(Debug, Clone)]
pub(super) struct Turns {
    pub(super) conversation: Conversation,
    /// Messages before the first turn, which always stay.
    pub(super) opening: usize,
    /// Where each turn begins.
    begins: Vec<usize>,
}

impl Turns {
    pub(super) fn new(conversation: Conversation) -> Self {
        let messages = &conversation.messages;
        let opening = messages.iter().take_while(|message| message["role"] == "system").count();
        let begins = (opening..messages.len())
            .filter(|&at| at == opening || messages[at]["role"] == "user")
            // Two messages of a user in a row are one turn: nobody has answered the first.
            .filter(|&at| at == opening || messages[at - 1]["role"] != "user")
            .collect();
        Self { conversation, opening, begins }
    }

    /// Turns that can be left out: all but the last.
    pub(super) fn droppable(&self) -> usize {
        self.begins.len().saturating_sub(1)
    }

    /// The messages of so many turns, the oldest.
    pub(super) fn oldest(&self, count: usize) -> Range<usize> {
        self.opening..self.begins.get(count).copied().unwrap_or(self.conversation.messages.len())
    }

    /// The conversation without them.
    pub(super) fn without(&self, count: usize) -> Conversation {
        let left_out = self.oldest(count);
        let messages = self.conversation.messages.iter().enumerate();
        let kept: Vec<Message> =
            messages.filter(|(at, _)| !left_out.contains(at)).map(|(_, message)| message.clone()).collect();
        Conversation { messages: kept, ..self.conversation.clone() }
    }

    /// The fewest turns to leave out so that the prompt has at most `limit` tokens, and the tokens: those of the last turn alone
    /// where even they are more.
    pub(super) fn fitting(self, limit: usize, backend: &dyn Backend) -> Result<(Self, usize, Vec<u32>), EngineError> {
        let (mut low, mut high) = (1.min(self.droppable()), self.droppable());
        let mut found = (high, self.without(high).prompt(backend)?);
        // Each turn less is fewer tokens.
        while low < high {
            let middle = low + (high - low) / 2;
            let tokens = self.without(middle).prompt(backend)?;
            if tokens.len() <= limit {
                high = middle;
                found = (middle, tokens);
            } else {
                low = middle + 1;
            }
        }
        Ok((self, found.0, found.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn turns(roles: &[&str]) -> Turns {
        let messages = roles.iter().enumerate().map(|(at, role)| json!({"role": role, "content": at})).collect();
        Turns::new(Conversation { messages, ..Conversation::default() })
    }

    fn kept(turns: &Turns, count: usize) -> Vec<u64> {
        turns.without(count).messages.iter().filter_map(|message| message["content"].as_u64()).collect()
    }

    #[test]
    fn system_messages_and_the_last_turn_stay() {
        let turns = turns(&["system", "user", "assistant", "user", "assistant", "tool", "assistant", "user"]);
        assert_eq!(turns.droppable(), 2);
        assert_eq!(kept(&turns, 1), [0, 3, 4, 5, 6, 7]);
        assert_eq!(kept(&turns, 2), [0, 7]);
    }

    #[test]
    fn odd_beginnings() {
        let odd = turns(&["assistant", "user", "user", "assistant", "user"]);
        assert_eq!((odd.droppable(), kept(&odd, 1), kept(&odd, 2)), (2, vec![1, 2, 3, 4], vec![4]));
        assert_eq!(turns(&["system"]).droppable(), 0);
        assert_eq!(turns(&[]).droppable(), 0);
    }
}
