//! Functions in f64 that the standard library lacks, for tests.

/// Φ(-a) for a ≥ 0, to about 1e-14 of it: a series without alternating signs up to 3, a continued fraction beyond.
pub(crate) fn normal_tail(a: f64) -> f64 {
    let density = (-a * a / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    if a < 3.0 {
        // Φ(a) - 1/2 = density · Σ_n a^(2n+1) / (1 · 3 · … · (2n+1)).
        let (mut term, mut sum) = (a, 0.0);
        for odd in (3..200).step_by(2) {
            sum += term;
            term *= a * a / f64::from(odd);
        }
        return 0.5 - density * sum;
    }
    // density / (a + 1/(a + 2/(a + 3/(a + …)))).
    density / (1..200).rev().fold(a, |rest, n| a + f64::from(n) / rest)
}

#[test]
fn the_normal_tail_is_that_of_the_tables() {
    // Abramowitz and Stegun 1964, tables 26.1 and 26.2.
    for (a, want) in [(0.0, 0.5), (1.0, 0.158_655_253_931_457), (2.5, 0.006_209_665_325_776), (5.0, 2.866_515_719e-7)] {
        assert!((normal_tail(a) / want - 1.0).abs() < 1e-9, "{a}");
    }
    assert!((normal_tail(3.0 - 1e-12) / normal_tail(3.0) - 1.0).abs() < 1e-10, "both halves meet");
}
