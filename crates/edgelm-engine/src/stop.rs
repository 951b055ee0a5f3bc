//! Finding stop strings in text that arrives in pieces.

/// Holds back text that may turn out to be the beginning of a stop string.
pub(crate) struct StopMatcher {
    stops: Vec<String>,
    held: String,
}

impl StopMatcher {
    pub(crate) fn new(stops: &[String]) -> Self {
        Self { stops: stops.to_vec(), held: String::new() }
    }

    /// Adds text. Returns what is certain now, and whether a stop string was met (it and what follows are dropped).
    pub(crate) fn push(&mut self, text: &str) -> (String, bool) {
        self.held.push_str(text);
        let first = self.stops.iter().filter(|stop| !stop.is_empty()).filter_map(|stop| self.held.find(stop.as_str()));
        if let Some(at) = first.min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let keep = self.longest_beginning();
        let rest = self.held.split_off(self.held.len() - keep);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What was held back, when no more text comes.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Length of the longest end of the held text that begins some stop string.
    fn longest_beginning(&self) -> usize {
        let starts = self.held.char_indices().map(|(at, _)| at);
        let is_beginning = |at: usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[at..]));
        starts.into_iter().find(|&at| is_beginning(at)).map_or(0, |at| self.held.len() - at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let stops: Vec<String> = stops.iter().map(|s| s.to_string()).collect();
        let mut matcher = StopMatcher::new(&stops);
        let mut out = Vec::new();
        for piece in pieces {
            let (text, stopped) = matcher.push(piece);
            out.push(text);
            if stopped {
                return (out, true);
            }
        }
        out.push(matcher.finish());
        (out, false)
    }

    #[test]
    fn text_without_a_stop_passes() {
        assert_eq!(run(&[], &["a", "b"]), (vec!["a".into(), "b".into(), String::new()], false));
    }

    #[test]
    fn a_stop_across_pieces_is_cut_off_before_it() {
        assert_eq!(run(&["END"], &["one E", "N", "D two"]), (vec!["one ".into(), "".into(), "".into()], true));
    }

    #[test]
    fn a_false_beginning_is_given_back() {
        assert_eq!(run(&["END"], &["E", "Nd"]), (vec!["".into(), "ENd".into(), "".into()], false));
        assert_eq!(run(&["aab"], &["a", "a", "a"]).0.concat(), "aaa");
    }

    #[test]
    fn the_earliest_of_several_wins() {
        assert_eq!(run(&["c", "b"], &["abc"]), (vec!["a".into()], true));
        assert_eq!(run(&["é!"], &["caf", "é", "!"]).0.concat(), "caf");
    }
}
