//! Windows that differ: one per cluster of a k-means clustering of what they are about.

use super::Draw;
use crate::CompressError;
use edgelm_model::Tensors;
use rayon::prelude::*;
use std::collections::HashMap;

/// Windows that are looked at, at least; beyond 16 per window asked for, the rest is not. 128 of 4,096 are found in two
/// seconds, and more do not make the clusters differ more.
const CANDIDATES: usize = 4096;

/// Rounds of k-means at most. It has settled after ten or so.
const ROUNDS: usize = 30;

/// Chooses `count` windows, or all where there are no more: k-means (Lloyd) over [`embeddings`] with k = `count` and seeds
/// after k-means++ (Arthur and Vassilvitskii 2007); of each cluster the window nearest to its centre, in the order of the
/// seeds.
pub(super) fn choose(
    mut windows: Vec<Vec<u32>>,
    tensors: &dyn Tensors,
    count: usize,
    draw: &mut Draw,
) -> Result<Vec<Vec<u32>>, CompressError> {
    if windows.len() <= count {
        return Ok(windows);
    }
    let candidates = CANDIDATES.max(count.saturating_mul(16));
    draw.move_to_front(&mut windows, candidates);
    windows.truncate(candidates);
    let points = embeddings(tensors, &windows)?;
    Ok(nearest_to_centres(&points, count, draw).into_iter().map(|index| std::mem::take(&mut windows[index])).collect())
}

/// What each window is about: the mean of the embeddings of its tokens, rare tokens before frequent ones.
///
/// e(window) = 1/T · Σₜ a / (a + p(token)) · embedding(token), p the share of the token among all of them, a = 10⁻³.
/// Source: the weights of Arora, Liang and Ma 2017, "A simple but tough-to-beat baseline for sentence embeddings".
fn embeddings(tensors: &dyn Tensors, windows: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, CompressError> {
    const A: f64 = 1e-3;
    let mut counts: HashMap<u32, usize> = HashMap::new();
    windows.iter().flatten().for_each(|&token| *counts.entry(token).or_default() += 1);
    let all = counts.values().sum::<usize>().max(1) as f64;
    let of = |window: &Vec<u32>| -> Result<Vec<f32>, CompressError> {
        let hidden = edgelm_engine::token_embeddings(tensors, window)?;
        let size = tensors.config().hidden_size.max(1);
        let mut mean = vec![0.0; size];
        for (token, row) in window.iter().zip(hidden.chunks_exact(size)) {
            let share = counts.get(token).copied().unwrap_or_default() as f64 / all;
            let weight = (A / (A + share) / window.len() as f64) as f32;
            mean.iter_mut().zip(row).for_each(|(sum, value)| *sum += weight * value);
        }
        Ok(mean)
    };
    windows.par_iter().map(of).collect()
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
}

/// The centre nearest to `point`, and its squared distance.
fn nearest(point: &[f32], centres: &[Vec<f32>]) -> (usize, f32) {
    let distances = centres.iter().map(|centre| distance(point, centre)).enumerate();
    distances.min_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or((0, f32::INFINITY))
}

/// Indices of `count` points, at most all; each once. The result does not depend on the number of threads.
fn nearest_to_centres(points: &[Vec<f32>], count: usize, draw: &mut Draw) -> Vec<usize> {
    let mut centres = seeds(points, count, draw);
    let mut clusters: Vec<(usize, f32)> = Vec::new();
    for _ in 0..ROUNDS {
        let found: Vec<(usize, f32)> = points.par_iter().map(|point| nearest(point, &centres)).collect();
        let is_settled = found.iter().map(|found| found.0).eq(clusters.iter().map(|cluster| cluster.0));
        clusters = found;
        if is_settled {
            break;
        }
        centres.par_iter_mut().enumerate().for_each(|(index, centre)| {
            let members = points.iter().zip(&clusters).filter(|(_, cluster)| cluster.0 == index);
            let mut sum = vec![0.0f64; centre.len()];
            let mut size = 0;
            for (point, _) in members {
                sum.iter_mut().zip(point).for_each(|(sum, value)| *sum += f64::from(*value));
                size += 1;
            }
            if size > 0 {
                centre.iter_mut().zip(sum).for_each(|(value, sum)| *value = (sum / f64::from(size)) as f32);
            }
        });
    }
    let of_cluster = |index: usize| {
        let members = clusters.iter().enumerate().filter(move |(_, cluster)| cluster.0 == index);
        members.min_by(|a, b| a.1.1.total_cmp(&b.1.1)).map(|member| member.0)
    };
    let mut chosen: Vec<usize> = (0..centres.len()).filter_map(of_cluster).collect();
    // Where many windows are the same there are fewer clusters.
    let rest = (0..points.len()).filter(|index| !chosen.contains(index)).take(count.saturating_sub(chosen.len()));
    let rest: Vec<usize> = rest.collect();
    chosen.extend(rest);
    chosen
}

/// The first at random, each further one with a chance that grows with its squared distance from those there are. Fewer than
/// `count` where there are fewer different points.
fn seeds(points: &[Vec<f32>], count: usize, draw: &mut Draw) -> Vec<Vec<f32>> {
    let mut centres: Vec<Vec<f32>> = Vec::new();
    let mut distances = vec![f32::INFINITY; points.len()];
    let mut next = if points.is_empty() { None } else { Some(draw.below(points.len())) };
    while let Some(index) = next.filter(|_| centres.len() < count) {
        let centre = points[index].clone();
        distances.par_iter_mut().zip(points).for_each(|(least, point)| *least = least.min(distance(point, &centre)));
        centres.push(centre);
        let mut left = draw.unit() * distances.iter().map(|&distance| f64::from(distance)).sum::<f64>();
        let mut far = distances.iter().enumerate().filter(|(_, distance)| **distance > 0.0).peekable();
        next = None;
        while let Some((index, &distance)) = far.next() {
            left -= f64::from(distance);
            if left < 0.0 || far.peek().is_none() {
                next = Some(index);
                break;
            }
        }
    }
    centres
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::random::Random;

    /// `groups` clouds of `size` points, far apart; point i is of cloud i mod `groups`.
    fn clouds(groups: usize, size: usize) -> Vec<Vec<f32>> {
        let mut random = Random(1);
        let point = |index: usize| (0..8).map(|axis| if axis == index % groups { 50.0 } else { 0.0 }).collect();
        let centres: Vec<Vec<f32>> = (0..groups * size).map(point).collect();
        centres.into_iter().map(|centre| centre.iter().map(|value| value + random.next()).collect()).collect()
    }

    #[test]
    fn every_cloud_is_represented_once_by_what_is_in_its_middle() {
        let points = clouds(6, 40);
        for seed in 0..10 {
            let chosen = nearest_to_centres(&points, 6, &mut Draw(seed));
            let mut groups: Vec<usize> = chosen.iter().map(|index| index % 6).collect();
            groups.sort_unstable();
            assert_eq!(groups, [0, 1, 2, 3, 4, 5], "seed {seed}");
            for &index in &chosen {
                let members: Vec<&Vec<f32>> = points.iter().skip(index % 6).step_by(6).collect();
                let mean: Vec<f32> =
                    (0..8).map(|axis| members.iter().map(|point| point[axis]).sum::<f32>() / 40.0).collect();
                let least = members.iter().map(|point| distance(point, &mean)).fold(f32::INFINITY, f32::min);
                assert!(distance(&points[index], &mean) <= least * 1.001);
            }
            assert_eq!(chosen, nearest_to_centres(&points, 6, &mut Draw(seed)));
        }
    }

    #[test]
    fn points_that_are_the_same_are_still_chosen_once_each() {
        let mut points = vec![vec![1.0, 2.0]; 9];
        points.push(vec![5.0, 5.0]);
        let mut chosen = nearest_to_centres(&points, 4, &mut Draw(3));
        assert!(chosen.contains(&9), "{chosen:?}");
        chosen.sort_unstable();
        chosen.dedup();
        assert_eq!(chosen.len(), 4);
        assert_eq!(nearest_to_centres(&points[..2], 4, &mut Draw(0)).len(), 2);
        assert!(nearest_to_centres(&[], 4, &mut Draw(0)).is_empty());
    }
}
