//! Few rows of x: every weight is unpacked into registers, once per panel.

use super::sums::{Totals, with_offset};
use super::{Blocks, Take, Tiles};
use crate::matmul::activations::{GROUP_BLOCKS, Panel, QuantizedPanel};
use crate::matmul::format::{Format, Scales, Units, Words};
use crate::matmul::lanes::{Job, Lanes, Line, ROWS};
use std::marker::PhantomData;

/// Multiplies tiles with all rows of x, in panels of [`Lanes::FEW_PANELS`].
pub(in crate::matmul) fn few_rows<L: Lanes, F: Format>(l: L, tiles: &Tiles<'_, F>) {
    for tile in tiles.tiles.clone() {
        for &panel in &tiles.x.panels {
            match panel.width {
                8 if const { L::FEW_PANELS[0] >= 8 } => l.enter(OnePanel::<F, 8> { tiles, tile, panel }),
                4 if const { L::FEW_PANELS[0] >= 4 } => l.enter(OnePanel::<F, 4> { tiles, tile, panel }),
                2 if const { L::FEW_PANELS[0] >= 2 } => l.enter(OnePanel::<F, 2> { tiles, tile, panel }),
                _ => l.enter(OnePanel::<F, 1> { tiles, tile, panel }),
            }
        }
    }
}

/// R rows of x, and a tile.
struct OnePanel<'a, F, const R: usize> {
    tiles: &'a Tiles<'a, F>,
    tile: usize,
    panel: Panel,
}

impl<L: Lanes, F: Format, const R: usize> Job<L> for OnePanel<'_, F, R> {
    type Output = ();

    #[inline(always)]
    fn run(self, l: L) {
        let Self { tiles, tile, panel } = self;
        let Tiles { blocks: count, x, out, .. } = tiles;
        let (blocks, memory) = (tiles.of(tile), tiles.weights.tile(tile).as_ptr());
        let x = x.panel::<R>(panel);
        let mut acc = [[l.splat_f32(0.0)]; R];
        if F::SUBS == 1 {
            for group in 0..count.div_ceil(GROUP_BLOCKS) {
                let part = blocks.group(group);
                let units = F::units(l, part.words, part.halves);
                add::<L, F, R, 0>(l, &part, &units, &x, memory, group, &mut acc);
            }
        } else {
            for block in 0..*count {
                let part = blocks.part(block..block + 1);
                let units = F::units(l, part.words, part.halves);
                add::<L, F, R, 0>(l, &part, &units, &x, memory, 2 * block, &mut acc);
                add::<L, F, R, GROUP_BLOCKS>(l, &part, &units, &x, memory, 2 * block + 1, &mut acc);
            }
        }
        // SAFETY: this worker owns the tile.
        let out = unsafe { out.tiles(tile..tile + 1) };
        for r in 0..R {
            out.put_one(l, panel.start + r, acc[r][0]);
        }
    }
}

/// Unpacks one group and adds its products.
#[inline(always)]
fn add<L: Lanes, F: Format, const R: usize, const FIRST: usize>(
    l: L,
    part: &Blocks<'_, F>,
    units: &Units<L>,
    x: &QuantizedPanel<'_, R>,
    memory: *const Line,
    group: usize,
    acc: &mut [[L::F; 1]; R],
) {
    let mut products = Products::<L, F, R, FIRST> { totals: Totals::zero(l), x, memory, group, format: PhantomData };
    part.each::<L, FIRST>(l, units, &mut products);
    products.totals.flush(l, &[units.unit], &x.scales[group], acc);
}

/// Multiplies sub-blocks as they come.
struct Products<'a, L: Lanes, F: Format, const R: usize, const FIRST: usize> {
    totals: Totals<L, R, 1>,
    x: &'a QuantizedPanel<'a, R>,
    /// Where the tile begins.
    memory: *const Line,
    group: usize,
    format: PhantomData<F>,
}

impl<L: Lanes, F: Format, const R: usize, const FIRST: usize> Take<L> for Products<'_, L, F, R, FIRST> {
    #[inline(always)]
    fn take(&mut self, l: L, index: usize, q: [L::U; 8], scales: Scales<L::U>) {
        // A few lines at a time: a burst would occupy all line-fill buffers, and loads that only miss L1 wait for one too.
        // Blocks count with their lone f16, which stand together at the beginning of a tile.
        let (lone, block) = (usize::from(F::HALF_AT.is_some()), (self.group * GROUP_BLOCKS + index) / F::SUBS);
        let at = block * (F::Words::COUNT * size_of::<Line>() + lone * size_of::<[u16; ROWS]>()) + PREFETCH_BYTES;
        let (ahead, lines, sub) = (self.memory.wrapping_byte_add(at), F::Words::COUNT + lone, FIRST + index);
        for line in if F::SUBS == 1 { 0..lines } else { sub * lines / F::SUBS..(sub + 1) * lines / F::SUBS } {
            l.prefetch(ahead.wrapping_add(line));
        }
        let scales = with_offset::<L, F::Rule>(l, scales);
        self.totals.add::<F::Rule>(l, &[q], &[scales], self.x, self.group * GROUP_BLOCKS + index);
    }
}

/// How far ahead of the products decode asks for weights. TinyLlama's shape in Q4_0 on two cores with AVX-512: 31 tokens/s
/// without, 39 with 4 KiB into the first-level cache, 42.7, 43.4 and 40.6 with 4, 8 and 16 KiB into the second; 46 against 38
/// when asked for sub-block by sub-block and not for eight of them at once.
pub(crate) const PREFETCH_BYTES: usize = 8192;
