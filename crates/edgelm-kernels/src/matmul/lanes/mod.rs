//! Sixteen 32-bit lanes, one per row of a tile: the vector operations that every format is written with.
//!
//! One file per instruction set. Code generic over [`Lanes`] is `#[inline(always)]` and is entered through
//! [`Lanes::enter`], which compiles it once per instruction set; outside of `enter` it would still be correct, but slow.

mod scalar;

#[cfg(target_arch = "aarch64")]
mod arm;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod dotprod;
#[cfg(target_arch = "aarch64")]
mod i8mm;
#[cfg(target_arch = "aarch64")]
mod neon;

pub(crate) use scalar::Scalar;

use crate::Isa;
use bytemuck::{Pod, Zeroable};

/// Rows of a tile, and lanes of a vector.
pub(crate) const ROWS: usize = 16;

/// One cache line of packed weights: the same word of 16 rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u32; ROWS]);

impl Line {
    pub(crate) const ZERO: Self = Self([0; ROWS]);
}

// SAFETY: an array of plain integers whose size is a multiple of its alignment: no padding, all bit patterns valid.
unsafe impl Zeroable for Line {}
// SAFETY: as above.
unsafe impl Pod for Line {}

/// An instruction set, with the proof that this CPU has it.
#[derive(Clone, Copy)]
pub(crate) enum Family {
    Scalar(Scalar),
    #[cfg(target_arch = "x86_64")]
    Avx2(crate::isa::Avx2<false>),
    #[cfg(target_arch = "x86_64")]
    AvxVnni(crate::isa::Avx2<true>),
    #[cfg(target_arch = "x86_64")]
    Avx512(crate::isa::Avx512<false>),
    #[cfg(target_arch = "x86_64")]
    Amx(crate::isa::Avx512<true>),
    #[cfg(target_arch = "aarch64")]
    Neon(crate::isa::Neon),
    #[cfg(target_arch = "aarch64")]
    Dotprod(crate::isa::Dotprod),
    #[cfg(target_arch = "aarch64")]
    I8mm(crate::isa::I8mm),
}

/// table[word mod N] in the place of each word. Not inlined: it is loads and stores, and copies of it in every kernel of every
/// codebook format made the Arm build take more than twice as long.
#[inline(never)]
fn gather_words<const N: usize>(table: &[u32; N], line: &mut Line) {
    for word in &mut line.0 {
        *word = table[*word as usize % N];
    }
}

/// For [`Lanes::spread`] of either half: by mask, for each byte of the result the byte of the word that goes there, or 0x80.
const SPREAD: [[u32; 16]; 2] = {
    let mut tables = [[0; 16]; 2];
    let mut half = 0;
    while half < 2 {
        let mut mask = 0;
        while mask < 16 {
            let mut bytes = [0x80; 4];
            let (mut at, mut taken) = (0, 0);
            while at < 4 {
                if mask >> at & 1 == 1 && taken < 2 {
                    bytes[at] = (2 * half + taken) as u8;
                    taken += 1;
                }
                at += 1;
            }
            tables[half][mask] = u32::from_le_bytes(bytes);
            mask += 1;
        }
        half += 1;
    }
    tables
};

/// Code that is generic over the instruction set, before one is chosen.
pub(crate) trait LanesVisitor {
    type Output;
    fn visit<L: Lanes>(self, lanes: L) -> Self::Output;
}

impl Family {
    /// The kernels of a family; `Scalar` for one that this CPU lacks.
    pub(crate) fn of(isa: Isa) -> Self {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => crate::isa::Avx2::detect().map_or(Self::Scalar(Scalar), Self::Avx2),
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => crate::isa::Avx2::detect().map_or(Self::Scalar(Scalar), Self::AvxVnni),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => crate::isa::Avx512::detect().map_or(Self::Scalar(Scalar), Self::Avx512),
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => crate::isa::Avx512::detect().map_or(Self::Scalar(Scalar), Self::Amx),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => crate::isa::Neon::detect().map_or(Self::Scalar(Scalar), Self::Neon),
            #[cfg(target_arch = "aarch64")]
            Isa::Dotprod => crate::isa::Dotprod::detect().map_or(Self::Scalar(Scalar), Self::Dotprod),
            #[cfg(target_arch = "aarch64")]
            Isa::I8mm => crate::isa::I8mm::detect().map_or(Self::Scalar(Scalar), Self::I8mm),
            _ => Self::Scalar(Scalar),
        }
    }

    pub(crate) fn visit<V: LanesVisitor>(self, visitor: V) -> V::Output {
        match self {
            Self::Scalar(lanes) => visitor.visit(lanes),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(lanes) => visitor.visit(lanes),
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni(lanes) => visitor.visit(lanes),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(lanes) => visitor.visit(lanes),
            #[cfg(target_arch = "x86_64")]
            Self::Amx(lanes) => visitor.visit(lanes),
            #[cfg(target_arch = "aarch64")]
            Self::Neon(lanes) => visitor.visit(lanes),
            #[cfg(target_arch = "aarch64")]
            Self::Dotprod(lanes) => visitor.visit(lanes),
            #[cfg(target_arch = "aarch64")]
            Self::I8mm(lanes) => visitor.visit(lanes),
        }
    }
}

/// What the bytes of a quantized weight vector may be.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    /// 0 ..= this, at most 127.
    Unsigned(i32),
    /// -128 ..= 127, passed through [`Lanes::signed`].
    Signed,
}

/// Code to run on the lanes of one instruction set. `run` must be `#[inline(always)]`.
pub(crate) trait Job<L: Lanes> {
    type Output;
    fn run(self, lanes: L) -> Self::Output;
}

/// Four blocks of a product, with strides counted in lines: line `row · to_stride + column` of `to` becomes the sums
/// Σ_step Σ_b x.byte(b) · q.lane.byte(b), where x is line `row · x_stride + step` and byte 4 · i + j of a lane is byte j of
/// its word in line `step · step_stride + i · q_stride + column · column_stride` of `q`.
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "only AMX has matrix registers"))]
pub(crate) struct MatrixFour {
    /// Bytes of x are unsigned; those of q never are.
    pub(crate) unsigned: bool,
    /// Sums of 64 bytes that are added.
    pub(crate) steps: usize,
    pub(crate) x: *const Line,
    pub(crate) x_stride: usize,
    pub(crate) q: *const Line,
    pub(crate) q_stride: usize,
    pub(crate) step_stride: usize,
    pub(crate) column_stride: usize,
    pub(crate) to: *mut Line,
    pub(crate) to_stride: usize,
}

/// totals[r][t] += scale[t] · dots[r][t].
#[inline(always)]
fn add_dots<L: Lanes, const R: usize, const T: usize>(
    l: L,
    dots: &[[L::U; T]; R],
    scale: [L::U; T],
    totals: &mut [[L::U; T]; R],
) {
    for r in 0..R {
        for t in 0..T {
            totals[r][t] = l.mul_add(dots[r][t], scale[t], totals[r][t]);
        }
    }
}

#[inline(always)]
fn load_words<L: Lanes, const T: usize, const W: usize>(l: L, lines: [&[Line; W]; T]) -> [[L::U; W]; T] {
    let mut words = [[l.splat(0); W]; T];
    for t in 0..T {
        for w in 0..W {
            words[t][w] = l.load(&lines[t][w]);
        }
    }
    words
}

/// A value is the proof that the CPU has the instruction set.
///
/// Numerics: integer operations are exact. `fma` rounds once, in every implementation; so results agree bit for bit
/// between instruction sets wherever the order of operations is the same. The exception is `fma_wide`, which float
/// products use: `Scalar` rounds twice there.
pub(crate) trait Lanes: Copy + Send + Sync {
    /// Sixteen 32-bit words, or 64 bytes.
    type U: Copy;
    /// Sixteen f32.
    type F: Copy;
    /// The same without matrix registers, so that what does not use them is compiled once for both.
    type Vector: Lanes;
    /// The elementwise lanes to use beside these.
    type Simd: crate::simd::Lanes;

    /// Added by `signed` to each byte; products must subtract it.
    const SIGNED_OFFSET: i32;
    /// Widths of activation panels, widest first, for products that unpack weights to registers.
    const FEW_PANELS: &'static [usize] = &[4, 2, 1];
    /// The same for products that reuse unpacked weights.
    const INT_PANELS: &'static [usize];
    /// The same for f32 products.
    const FLOAT_PANELS: &'static [usize];
    /// From this many rows on unpacking to a buffer pays: for formats of 32 values per block, and of 256.
    const MANY_ROWS: [usize; 2] = [12; 2];
    /// Whether two tiles at once fit the registers.
    const TWO_TILES: bool;
    /// Whether there are matrix registers: the `matrix_` methods work, and many rows go through them.
    const MATRIX: bool = false;

    /// The proof that the CPU has the vector instructions alone.
    fn vector(self) -> Self::Vector;

    /// Runs `job` as code compiled for this instruction set. The compiler takes more than twice as long for twice the code,
    /// so a job is no more than what must not be called: about a microsecond of work.
    fn enter<J: Job<Self>>(self, job: J) -> J::Output;

    fn splat(self, value: u32) -> Self::U;
    fn load(self, line: &Line) -> Self::U;
    fn store(self, value: Self::U, line: &mut Line);
    fn and(self, a: Self::U, b: Self::U) -> Self::U;
    fn or(self, a: Self::U, b: Self::U) -> Self::U;
    fn xor(self, a: Self::U, b: Self::U) -> Self::U;
    /// Left shift of each word by fewer than 32 bits.
    fn shl(self, a: Self::U, bits: u32) -> Self::U;
    /// Logical right shift of each word by fewer than 32 bits.
    fn shr(self, a: Self::U, bits: u32) -> Self::U;
    /// Arithmetic right shift of each word by fewer than 32 bits.
    fn sar(self, a: Self::U, bits: u32) -> Self::U;
    /// Bits `shift ..` of each byte under `mask`.
    #[inline(always)]
    fn byte_bits(self, a: Self::U, shift: u32, mask: u8) -> Self::U {
        self.and(self.shr(a, shift), self.splat(u32::from_ne_bytes([mask; 4])))
    }
    /// Subtraction of words, wrapping.
    fn sub(self, a: Self::U, b: Self::U) -> Self::U;
    /// a · b + c of words, wrapping.
    fn mul_add(self, a: Self::U, b: Self::U, c: Self::U) -> Self::U;
    /// 256 · high + low of words, wrapping.
    #[inline(always)]
    fn add_high(self, high: Self::U, low: Self::U) -> Self::U {
        self.sub(low, self.sub(self.splat(0), self.shl(high, 8)))
    }
    /// The larger of each two words, as i32.
    fn max(self, a: Self::U, b: Self::U) -> Self::U;
    /// The low halves of two words in one.
    #[inline(always)]
    fn pair(self, low: Self::U, high: Self::U) -> Self::U {
        self.or(self.and(low, self.splat(0xffff)), self.shl(high, 16))
    }
    /// sum + low half · low half of x + high half · high half of x, of each word of two i16. Wrapping.
    #[inline(always)]
    fn dot_pairs(self, sum: Self::U, pairs: Self::U, x: u32) -> Self::U {
        let low = self.sar(self.shl(pairs, 16), 16);
        self.dot_high(self.mul_add(low, self.splat(i32::from(x as i16) as u32), sum), pairs, x)
    }
    /// The same for an x whose low half is 0.
    #[inline(always)]
    fn dot_high(self, sum: Self::U, pairs: Self::U, x: u32) -> Self::U {
        self.mul_add(self.sar(pairs, 16), self.splat((x as i32 >> 16) as u32), sum)
    }
    /// (a · b + 2^14) >> 15 of each i16, a ≥ 0.
    #[inline(always)]
    fn mul_fractions(self, a: Self::U, b: Self::U) -> Self::U {
        let half = |a: Self::U, b: Self::U| self.sar(self.mul_add(a, b, self.splat(1 << 14)), 15);
        let low = half(self.sar(self.shl(a, 16), 16), self.sar(self.shl(b, 16), 16));
        self.pair(low, half(self.sar(a, 16), self.sar(b, 16)))
    }
    /// table[byte] for each byte, all of them below 16.
    fn lookup(self, table: &[i8; 16], bytes: Self::U) -> Self::U;
    /// The bytes 2 · HALF and 2 · HALF + 1 of each word in the places of the first two bits that are set among the low four of
    /// `masks`, and 0 in the others.
    fn spread<const HALF: usize>(self, pairs: Self::U, masks: Self::U) -> Self::U;
    /// table[word mod N] for each word; N is a power of two.
    #[inline(always)]
    fn gather<const N: usize>(self, table: &[u32; N], index: Self::U) -> Self::U {
        const { assert!(N.is_power_of_two()) };
        let mut line = Line::ZERO;
        self.store(index, &mut line);
        gather_words(table, &mut line);
        self.load(&line)
    }
    /// Prepares signed bytes for `dot`.
    fn signed(self, bytes: Self::U) -> Self::U;

    /// Σ_w Σ_b q[t][w].byte(b) · x[w][r].byte(b) per lane, for R rows of x and T tiles.
    /// Exact as long as activations are in -127 ..= 127 and weight bytes in the range of `kind`.
    fn dot<const R: usize, const T: usize, const W: usize>(
        self,
        kind: Kind,
        q: &[[Self::U; W]; T],
        x: &[[u32; R]; W],
    ) -> [[Self::U; T]; R];

    /// Makes the matrix registers ready.
    fn matrix_begin(self) {}
    /// (q − offset) · scale + min of every byte, which fits 16 bits: its high bytes, signed, and its low bytes, unsigned.
    /// `scale` and `min` have the same i16 in both halves of a word.
    fn matrix_planes(self, kind: Kind, offset: i32, q: Self::U, scale: Self::U, min: Self::U) -> [Self::U; 2] {
        let _ = (kind, offset, scale, min);
        [q; 2]
    }
    /// Adds 64 bytes to sums number `index`, which step 0 starts: for high and low bytes b of the planes each,
    /// c[row][lane] += Σ_b x.row.byte(b) · plane.lane.byte(b), exactly. `x` are 16 lines, one per row; `planes` 16 lines of high
    /// bytes and 16 of low ones, one per 4 bytes.
    ///
    /// # Safety
    /// Between `matrix_begin` and `matrix_end`; the lines are readable memory.
    unsafe fn matrix_step(self, index: usize, step: usize, x: *const Line, planes: *const Line) {
        let _ = (index, step, x, planes);
    }
    /// Writes the rows of sums number `index`, the last or the last but one that was started: plane 0 over high bytes, plane 1
    /// over low ones.
    ///
    /// # Safety
    /// Between `matrix_begin` and `matrix_end`.
    unsafe fn matrix_store(self, index: usize, plane: usize, to: &mut [Line; ROWS]) {
        let _ = (index, plane, to);
    }
    /// Computes four blocks of sixteen rows and sixteen lanes, exactly.
    ///
    /// # Safety
    /// Between `matrix_begin` and `matrix_end`; what `four` points to is as it says.
    unsafe fn matrix_four(self, four: &MatrixFour) {
        let _ = four;
    }
    /// Gives the matrix registers up.
    fn matrix_end(self) {}

    /// sum[r] + Σ_b bytes[r].byte(b) · x.byte(b) per lane. Exact as long as x is in -127 ..= 127 and `bytes` are signed ones
    /// passed through [`Lanes::signed`].
    #[inline(always)]
    fn dot_signed(self, sum: Self::U, bytes: Self::U, x: u32) -> Self::U {
        let [[dot]] = self.dot(Kind::Signed, &[[bytes]], &[[x]]);
        self.sub(sum, self.sub(self.splat(0), dot))
    }
    /// sum[r] + Σ_b bytes[r].byte(b) · x.byte(b) per lane, for any signed `bytes` and any unsigned x: x = 2 · half + bit.
    #[inline(always)]
    fn dot_unsigned(self, sum: Self::U, bytes: Self::U, x: u32) -> Self::U {
        let (half, bit) = (x >> 1 & 0x7f7f_7f7f, x & 0x0101_0101);
        let total = |x: u32| x.to_le_bytes().iter().map(|&byte| i32::from(byte)).sum::<i32>();
        let offset = Self::SIGNED_OFFSET * (2 * total(half) + total(bit));
        let bytes = [[self.signed(bytes)]];
        let [[bit]] = self.dot(Kind::Signed, &bytes, &[[bit]]);
        let [[half]] = self.dot(Kind::Signed, &bytes, &[[half]]);
        self.sub(sum, self.sub(self.sub(self.splat(offset as u32), bit), self.shl(half, 1)))
    }

    /// Rearranges unpacked weights that many rows of x will pass over, for [`Lanes::dot_paired`].
    #[inline(always)]
    fn pair_words(self, q: [Self::U; 8]) -> [Self::U; 8] {
        q
    }

    /// `dot` of rearranged weights, or of their first or last four words.
    #[inline(always)]
    fn dot_paired<const R: usize, const T: usize, const W: usize>(
        self,
        kind: Kind,
        q: &[[Self::U; W]; T],
        x: &[[u32; R]; W],
    ) -> [[Self::U; T]; R] {
        self.dot(kind, q, x)
    }

    /// totals[r][t] += scale[t] · the [`Lanes::dot`] of row r and tile t.
    #[inline(always)]
    fn add_products<const R: usize, const T: usize, const W: usize>(
        self,
        kind: Kind,
        q: &[[Self::U; W]; T],
        scale: [Self::U; T],
        x: &[[u32; R]; W],
        totals: &mut [[Self::U; T]; R],
    ) {
        add_dots(self, &self.dot(kind, q, x), scale, totals);
    }

    /// Makes the scales of unpacked weights ready for [`Lanes::add_stored`].
    #[inline(always)]
    fn ready_scale(self, scale: Self::U) -> Self::U {
        scale
    }

    /// totals[r][t] += scale[t] · Σ_w Σ_b q[t][w].byte(b) · x[w][r].byte(b) per lane, for weights that went through
    /// [`Lanes::pair_words`] and to memory, and scales that went through [`Lanes::ready_scale`].
    #[inline(always)]
    fn add_stored<const R: usize, const T: usize, const W: usize>(
        self,
        kind: Kind,
        q: [&[Line; W]; T],
        scale: [Self::U; T],
        x: &[[u32; R]; W],
        totals: &mut [[Self::U; T]; R],
    ) {
        add_dots(self, &self.dot_paired(kind, &load_words(self, q), x), scale, totals);
    }

    /// Each word, as i32, to f32.
    fn to_f32(self, a: Self::U) -> Self::F;
    /// The nearest integers, ties to even; what does not fit an i32 becomes anything.
    fn round(self, a: Self::F) -> Self::U;
    /// The bits of each f32.
    fn as_bits(self, a: Self::F) -> Self::U;
    /// The f32 of each word of bits.
    fn as_floats(self, a: Self::U) -> Self::F;
    /// Sixteen halves, each in the low half of a word.
    fn load_u16(self, values: &[u16; ROWS]) -> Self::U;
    fn splat_f32(self, value: f32) -> Self::F;
    fn load_f32(self, values: &[f32; ROWS]) -> Self::F;
    fn store_f32(self, value: Self::F, out: &mut [f32; ROWS]);
    fn load_f16(self, values: &[u16; ROWS]) -> Self::F;
    fn load_bf16(self, values: &[u16; ROWS]) -> Self::F;
    /// The low half of each word, as f16, to f32.
    fn f16_low(self, a: Self::U) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// a · b + c, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// a · b + c; `Scalar` rounds the product too, because an emulated fused operation per weight is unusably slow.
    fn fma_wide(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        self.fma(a, b, c)
    }

    /// The largest |value|, as bits: not-a-number exceeds infinity exceeds the rest.
    fn max_magnitude(self, values: &[[f32; 32]]) -> u32;
    /// round(value · factor) to the nearest integer, ties to even, as bytes; and the two sums of 16.
    /// Products must lie in -127.5 .. 127.5.
    fn quantize(self, values: &[f32; 32], factor: f32, out: &mut [i8; 32]) -> [i32; 2];

    /// Asks for a line that will be read soon to come into the second-level cache: into the first, no more than the dozen
    /// or so that a core has line-fill buffers for would be on their way. The pointer need not be valid.
    fn prefetch(self, line: *const Line) {
        let _ = line;
    }
}
