//! Recipes that come with the program: the files of the repository's folder `recipes`, compiled in.

/// A recipe by name.
#[derive(Debug, Clone, Copy)]
pub struct Ready {
    /// As in `--recipe`.
    pub name: &'static str,
    /// TOML.
    pub text: &'static str,
}

/// All of them.
pub const READY: [Ready; 4] = [
    Ready { name: "maximum-compression", text: include_str!("../../../../recipes/maximum-compression.toml") },
    Ready { name: "balanced", text: include_str!("../../../../recipes/balanced.toml") },
    Ready { name: "fast-prototype", text: include_str!("../../../../recipes/fast-prototype.toml") },
    Ready { name: "safety-critical", text: include_str!("../../../../recipes/safety-critical.toml") },
];
