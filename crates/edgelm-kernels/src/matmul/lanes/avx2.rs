//! Two ymm registers per vector; `vpdpbusd` for the products where there is AVX-VNNI (Intel's small cores from Gracemont on),
//! and `vpmaddubsw` elsewhere, which saturates at 16 bits.
//!
//! An activation is at most 127, so one `vpmaddubsw` sum of two products is at most 2 · 127 · max. As many of them as
//! stay below 2^15 are added in 16 bits before they are widened: 8 for 4-bit weights, 1 for 7-bit ones.

use super::{Job, Kind, Lanes, Line, ROWS, SPREAD, add_dots, load_words};
use crate::isa::Avx2;
use std::arch::x86_64::*;

// Every `unsafe` block below calls intrinsics, which need only that the CPU has the instructions; a value of `Avx2`
// exists only if it has. Loads and stores go through references of exactly the size that is accessed.

type Words = [__m256i; 2];
type Floats = [__m256; 2];

impl<const VNNI: bool> Lanes for Avx2<VNNI> {
    type U = Words;
    type F = Floats;
    type Vector = Self;
    type Simd = crate::simd::Avx2;

    /// `vpdpbusd` takes unsigned weights: 128 is added by flipping the top bit.
    const SIGNED_OFFSET: i32 = if VNNI { 128 } else { 0 };
    const INT_PANELS: &'static [usize] = &[4, 2, 1];
    const FLOAT_PANELS: &'static [usize] = &[6, 4, 2, 1];
    /// Without `vpdpbusd`, ms per product with 1.8·10⁸ weights on two Zen 3 cores, from registers / from a buffer: Q4_0 with 4
    /// rows 5.3 / 8.0, 8 rows 11 / 12, 12 rows 22 / 17; Q8_0 9.7 / 14, 18 / 19.5, 32 / 26; Q4_K with 3 rows 9.8 / 7.9, 6
    /// rows 10.5 / 10.0, 12 rows 27 / 17; Q6_K 22 / 13, 30 / 16, 66 / 27.
    const MANY_ROWS: [usize; 2] = if VNNI { [12; 2] } else { [10, 3] };
    const TWO_TILES: bool = false;

    fn vector(self) -> Self::Vector {
        self
    }

    fn enter<J: Job<Self>>(self, job: J) -> J::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn inside<L: Lanes, J: Job<L>>(lanes: L, job: J) -> J::Output {
            job.run(lanes)
        }
        #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
        fn inside_vnni<L: Lanes, J: Job<L>>(lanes: L, job: J) -> J::Output {
            job.run(lanes)
        }
        // SAFETY: `self` proves the features.
        unsafe { if const { VNNI } { inside_vnni(self, job) } else { inside(self, job) } }
    }

    #[inline(always)]
    fn splat(self, value: u32) -> Words {
        // SAFETY: see above.
        unsafe { [_mm256_set1_epi32(value as i32); 2] }
    }
    #[inline(always)]
    fn load(self, line: &Line) -> Words {
        // SAFETY: see above; both loads lie inside the line.
        unsafe { [_mm256_load_si256(line.0.as_ptr().cast()), _mm256_load_si256(line.0[8..].as_ptr().cast())] }
    }
    #[inline(always)]
    fn store(self, value: Words, line: &mut Line) {
        // SAFETY: see above; both stores lie inside the line.
        unsafe {
            _mm256_store_si256(line.0.as_mut_ptr().cast(), value[0]);
            _mm256_store_si256(line.0[8..].as_mut_ptr().cast(), value[1]);
        }
    }
    #[inline(always)]
    fn and(self, a: Words, b: Words) -> Words {
        // SAFETY: see above.
        unsafe { [_mm256_and_si256(a[0], b[0]), _mm256_and_si256(a[1], b[1])] }
    }
    #[inline(always)]
    fn or(self, a: Words, b: Words) -> Words {
        // SAFETY: see above.
        unsafe { [_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])] }
    }
    #[inline(always)]
    fn xor(self, a: Words, b: Words) -> Words {
        // SAFETY: see above.
        unsafe { [_mm256_xor_si256(a[0], b[0]), _mm256_xor_si256(a[1], b[1])] }
    }
    #[inline(always)]
    fn shl(self, a: Words, bits: u32) -> Words {
        // SAFETY: see above.
        unsafe {
            let bits = _mm256_set1_epi32(bits as i32);
            [_mm256_sllv_epi32(a[0], bits), _mm256_sllv_epi32(a[1], bits)]
        }
    }
    #[inline(always)]
    fn shr(self, a: Words, bits: u32) -> Words {
        // SAFETY: see above.
        unsafe {
            let bits = _mm256_set1_epi32(bits as i32);
            [_mm256_srlv_epi32(a[0], bits), _mm256_srlv_epi32(a[1], bits)]
        }
    }
    #[inline(always)]
    fn sar(self, a: Words, bits: u32) -> Words {
        // SAFETY: see above.
        unsafe {
            let bits = _mm256_set1_epi32(bits as i32);
            [_mm256_srav_epi32(a[0], bits), _mm256_srav_epi32(a[1], bits)]
        }
    }
    #[inline(always)]
    fn sub(self, a: Words, b: Words) -> Words {
        // SAFETY: see above.
        unsafe { [_mm256_sub_epi32(a[0], b[0]), _mm256_sub_epi32(a[1], b[1])] }
    }
    #[inline(always)]
    fn mul_add(self, a: Words, b: Words, c: Words) -> Words {
        // SAFETY: see above.
        let half = |i: usize| unsafe { _mm256_add_epi32(_mm256_mullo_epi32(a[i], b[i]), c[i]) };
        [half(0), half(1)]
    }
    #[inline(always)]
    fn max(self, a: Words, b: Words) -> Words {
        // SAFETY: see above.
        unsafe { [_mm256_max_epi32(a[0], b[0]), _mm256_max_epi32(a[1], b[1])] }
    }
    #[inline(always)]
    fn dot_pairs(self, sum: Words, pairs: Words, x: u32) -> Words {
        let x = self.splat(x);
        // SAFETY: see above.
        let half = |i: usize| unsafe { _mm256_add_epi32(sum[i], _mm256_madd_epi16(pairs[i], x[i])) };
        [half(0), half(1)]
    }
    #[inline(always)]
    fn dot_high(self, sum: Words, pairs: Words, x: u32) -> Words {
        self.dot_pairs(sum, pairs, x)
    }
    #[inline(always)]
    fn mul_fractions(self, a: Words, b: Words) -> Words {
        // SAFETY: see above.
        unsafe { [_mm256_mulhrs_epi16(a[0], b[0]), _mm256_mulhrs_epi16(a[1], b[1])] }
    }
    #[inline(always)]
    fn lookup(self, table: &[i8; 16], bytes: Words) -> Words {
        // SAFETY: see above.
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            [_mm256_shuffle_epi8(table, bytes[0]), _mm256_shuffle_epi8(table, bytes[1])]
        }
    }
    #[inline(always)]
    fn spread<const HALF: usize>(self, pairs: Words, masks: Words) -> Words {
        // SAFETY: see above; each load reads eight words of the table.
        let half = |i: usize| unsafe {
            let low = _mm256_loadu_si256(SPREAD[HALF].as_ptr().cast());
            let high = _mm256_loadu_si256(SPREAD[HALF][8..].as_ptr().cast());
            let low = _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(low, masks[i]));
            let high = _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(high, masks[i]));
            let is_high = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(masks[i]));
            let of_word = _mm256_castps_si256(_mm256_blendv_ps(low, high, is_high));
            let first =
                _mm256_setr_epi32(0, 0x0404_0404, 0x0808_0808, 0x0c0c_0c0c, 0, 0x0404_0404, 0x0808_0808, 0x0c0c_0c0c);
            _mm256_shuffle_epi8(pairs[i], _mm256_or_si256(of_word, first))
        };
        [half(0), half(1)]
    }
    #[inline(always)]
    fn gather<const N: usize>(self, table: &[u32; N], index: Words) -> Words {
        const { assert!(N.is_power_of_two()) };
        let [low, high] = self.and(index, self.splat(N as u32 - 1));
        // SAFETY: see above; every index is below N.
        unsafe {
            [
                _mm256_i32gather_epi32::<4>(table.as_ptr().cast(), low),
                _mm256_i32gather_epi32::<4>(table.as_ptr().cast(), high),
            ]
        }
    }
    #[inline(always)]
    fn signed(self, bytes: Words) -> Words {
        if VNNI { self.xor(bytes, self.splat(0x8080_8080)) } else { bytes }
    }

    #[inline(always)]
    fn dot<const R: usize, const T: usize, const W: usize>(
        self,
        kind: Kind,
        q: &[[Words; W]; T],
        x: &[[u32; R]; W],
    ) -> [[Words; T]; R] {
        let mut sums = [[self.splat(0); T]; R];
        if VNNI {
            for w in 0..W {
                for r in 0..R {
                    for t in 0..T {
                        sums[r][t] = dot_vnni(sums[r][t], q[t][w], self.splat(x[w][r]));
                    }
                }
            }
            return sums;
        }
        for r in 0..R {
            for t in 0..T {
                for half in 0..2 {
                    sums[r][t][half] = dot_half(kind, sums[r][t][half], &q[t], half, x, r);
                }
            }
        }
        sums
    }

    #[inline(always)]
    fn add_products<const R: usize, const T: usize, const W: usize>(
        self,
        kind: Kind,
        q: &[[Words; W]; T],
        scale: [Words; T],
        x: &[[u32; R]; W],
        totals: &mut [[Words; T]; R],
    ) {
        if VNNI {
            return add_dots(self, &self.dot(kind, q, x), scale, totals);
        }
        // There are more of them than registers.
        let mut stored = [[Line::ZERO; W]; T];
        let mut scale = scale;
        for t in 0..T {
            scale[t] = self.ready_scale(scale[t]);
            for w in 0..W {
                self.store(q[t][w], &mut stored[t][w]);
            }
        }
        self.add_stored(kind, stored.each_ref(), scale, x, totals);
    }

    /// The scale as two i16, which it fits: `vpmaddwd` adds both halves of a 16-bit sum and multiplies.
    #[inline(always)]
    fn ready_scale(self, scale: Words) -> Words {
        if VNNI { scale } else { self.pair(scale, scale) }
    }

    #[inline(always)]
    fn add_stored<const R: usize, const T: usize, const W: usize>(
        self,
        kind: Kind,
        q: [&[Line; W]; T],
        scale: [Words; T],
        x: &[[u32; R]; W],
        totals: &mut [[Words; T]; R],
    ) {
        if VNNI {
            return add_dots(self, &self.dot(kind, &load_words(self, q), x), scale, totals);
        }
        let group = narrow_sums(kind);
        for t in 0..T {
            for from in (0..W).step_by(group) {
                let mut narrow = [self.splat(0); R];
                for w in from..W.min(from + group) {
                    let words = self.load(&q[t][w]);
                    for r in 0..R {
                        let x = self.splat(x[w][r]);
                        narrow[r] = [
                            add_narrow(kind, narrow[r][0], words[0], x[0]),
                            add_narrow(kind, narrow[r][1], words[1], x[1]),
                        ];
                    }
                }
                for r in 0..R {
                    totals[r][t] = [
                        add_wide(totals[r][t][0], narrow[r][0], scale[t][0]),
                        add_wide(totals[r][t][1], narrow[r][1], scale[t][1]),
                    ];
                }
            }
        }
    }

    #[inline(always)]
    fn dot_signed(self, sum: Words, bytes: Words, x: u32) -> Words {
        if VNNI {
            return dot_vnni(sum, bytes, self.splat(x));
        }
        let (q, x) = (&[bytes], &[[x]]);
        [dot_half(Kind::Signed, sum[0], q, 0, x, 0), dot_half(Kind::Signed, sum[1], q, 1, x, 0)]
    }

    #[inline(always)]
    fn dot_unsigned(self, sum: Words, bytes: Words, x: u32) -> Words {
        if VNNI {
            return dot_vnni(sum, self.splat(x), bytes);
        }
        // In 16 bits, even and odd bytes apart: `vpmaddubsw` would saturate. Splitting `bytes` is shared by all x.
        // SAFETY: see above.
        unsafe {
            let even = _mm256_set1_epi32((x & 0x00ff_00ff) as i32);
            let odd = _mm256_set1_epi32((x >> 8 & 0x00ff_00ff) as i32);
            let mut sum = sum;
            for half in 0..2 {
                let low = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(bytes[half]));
                let high = _mm256_srai_epi16::<8>(bytes[half]);
                sum[half] = _mm256_add_epi32(sum[half], _mm256_madd_epi16(low, even));
                sum[half] = _mm256_add_epi32(sum[half], _mm256_madd_epi16(high, odd));
            }
            sum
        }
    }

    #[inline(always)]
    fn to_f32(self, a: Words) -> Floats {
        // SAFETY: see above.
        unsafe { [_mm256_cvtepi32_ps(a[0]), _mm256_cvtepi32_ps(a[1])] }
    }
    #[inline(always)]
    fn round(self, a: Floats) -> Words {
        // SAFETY: see above.
        unsafe { [_mm256_cvtps_epi32(a[0]), _mm256_cvtps_epi32(a[1])] }
    }
    #[inline(always)]
    fn as_bits(self, a: Floats) -> Words {
        // SAFETY: see above.
        unsafe { [_mm256_castps_si256(a[0]), _mm256_castps_si256(a[1])] }
    }
    #[inline(always)]
    fn as_floats(self, a: Words) -> Floats {
        // SAFETY: see above.
        unsafe { [_mm256_castsi256_ps(a[0]), _mm256_castsi256_ps(a[1])] }
    }
    #[inline(always)]
    fn load_u16(self, values: &[u16; ROWS]) -> Words {
        // SAFETY: see above; both loads lie inside the array.
        unsafe {
            [
                _mm256_cvtepu16_epi32(_mm_loadu_si128(values.as_ptr().cast())),
                _mm256_cvtepu16_epi32(_mm_loadu_si128(values[8..].as_ptr().cast())),
            ]
        }
    }
    #[inline(always)]
    fn splat_f32(self, value: f32) -> Floats {
        // SAFETY: see above.
        unsafe { [_mm256_set1_ps(value); 2] }
    }
    #[inline(always)]
    fn load_f32(self, values: &[f32; ROWS]) -> Floats {
        // SAFETY: see above; both loads lie inside the array.
        unsafe { [_mm256_loadu_ps(values.as_ptr()), _mm256_loadu_ps(values[8..].as_ptr())] }
    }
    #[inline(always)]
    fn store_f32(self, value: Floats, out: &mut [f32; ROWS]) {
        // SAFETY: see above; both stores lie inside the array.
        unsafe {
            _mm256_storeu_ps(out.as_mut_ptr(), value[0]);
            _mm256_storeu_ps(out[8..].as_mut_ptr(), value[1]);
        }
    }
    #[inline(always)]
    fn load_f16(self, values: &[u16; ROWS]) -> Floats {
        // SAFETY: see above; both loads lie inside the array.
        unsafe {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(values.as_ptr().cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(values[8..].as_ptr().cast())),
            ]
        }
    }
    #[inline(always)]
    fn load_bf16(self, values: &[u16; ROWS]) -> Floats {
        // SAFETY: see above; both loads lie inside the array.
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(values.as_ptr().cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(values[8..].as_ptr().cast()));
            [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)), _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high))]
        }
    }
    #[inline(always)]
    fn f16_low(self, a: Words) -> Floats {
        // SAFETY: see above. The masked words are at most 65535, so packing does not saturate; it works per 128-bit
        // half, which the permutation by 0, 2, 1, 3 undoes.
        unsafe {
            let mask = _mm256_set1_epi32(0xffff);
            let packed = _mm256_packus_epi32(_mm256_and_si256(a[0], mask), _mm256_and_si256(a[1], mask));
            let ordered = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
            [_mm256_cvtph_ps(_mm256_castsi256_si128(ordered)), _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(ordered))]
        }
    }
    #[inline(always)]
    fn mul(self, a: Floats, b: Floats) -> Floats {
        // SAFETY: see above.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }
    #[inline(always)]
    fn fma(self, a: Floats, b: Floats, c: Floats) -> Floats {
        // SAFETY: see above.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }

    #[inline(always)]
    fn max_magnitude(self, values: &[[f32; 32]]) -> u32 {
        // SAFETY: see above; all loads lie inside the array.
        unsafe {
            let mask = _mm256_set1_epi32(0x7fff_ffff);
            let mut max = _mm256_setzero_si256();
            for eight in values.as_flattened().as_chunks::<8>().0 {
                let bits = _mm256_loadu_si256(eight.as_ptr().cast());
                max = _mm256_max_epi32(max, _mm256_and_si256(bits, mask));
            }
            let max = _mm_max_epi32(_mm256_castsi256_si128(max), _mm256_extracti128_si256::<1>(max));
            let max = _mm_max_epi32(max, _mm_shuffle_epi32::<0b01_00_11_10>(max));
            let max = _mm_max_epi32(max, _mm_shuffle_epi32::<0b10_11_00_01>(max));
            _mm_cvtsi128_si32(max) as u32
        }
    }
    #[inline(always)]
    fn quantize(self, values: &[f32; 32], factor: f32, out: &mut [i8; 32]) -> [i32; 2] {
        let mut sums = [0; 2];
        for half in 0..2 {
            // SAFETY: see above; loads and stores lie inside the arrays. Packing works per 128-bit half, which the
            // permutation by 0, 2, 1, 3 undoes.
            unsafe {
                let factor = _mm256_set1_ps(factor);
                let low = _mm256_mul_ps(_mm256_loadu_ps(values[16 * half..].as_ptr()), factor);
                let high = _mm256_mul_ps(_mm256_loadu_ps(values[16 * half + 8..].as_ptr()), factor);
                let words = _mm256_packs_epi32(_mm256_cvtps_epi32(low), _mm256_cvtps_epi32(high));
                let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
                let (low, high) = (_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
                _mm_storeu_si128(out[16 * half..].as_mut_ptr().cast(), _mm_packs_epi16(low, high));
                let sum = _mm_madd_epi16(_mm_add_epi16(low, high), _mm_set1_epi16(1));
                let sum = _mm_add_epi32(sum, _mm_shuffle_epi32::<0b01_00_11_10>(sum));
                let sum = _mm_add_epi32(sum, _mm_shuffle_epi32::<0b10_11_00_01>(sum));
                sums[half] = _mm_cvtsi128_si32(sum);
            }
        }
        sums
    }

    #[inline(always)]
    fn prefetch(self, line: *const Line) {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) }
    }
}

/// sum[i] + Σ_b q[i].byte(b) · x[i].byte(b), unsigned q and signed x.
#[inline(always)]
fn dot_vnni(sum: Words, q: Words, x: Words) -> Words {
    // SAFETY: only lanes with `VNNI` call this.
    unsafe { [_mm256_dpbusd_avx_epi32(sum[0], q[0], x[0]), _mm256_dpbusd_avx_epi32(sum[1], q[1], x[1])] }
}

/// The value, computed before what follows: else the compiler reorders sums so that one row comes after the other, and spills all
/// words and sums. Q4_0 and 512 rows of TinyLlama's shape: 8.7 ms per row, 10 without; Q6_K in half the time.
#[inline]
#[target_feature(enable = "avx2")]
fn pin(value: __m256i) -> __m256i {
    let mut value = value;
    // SAFETY: no instruction at all.
    unsafe { std::arch::asm!("/* {0} */", inout(ymm_reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// How many `vpmaddubsw` sums of products with such weights fit 16 bits together.
const fn narrow_sums(kind: Kind) -> usize {
    match kind {
        Kind::Unsigned(max) => {
            let sums = i16::MAX as i32 / (2 * 127 * max);
            if sums < 1 {
                1
            } else if sums > 8 {
                8
            } else {
                sums as usize
            }
        }
        // |−128| is 128 as an unsigned byte, and 2 · 128 · 127 still fits.
        Kind::Signed => 1,
    }
}

/// total + scale · the sum of both halves of each word of `narrow`.
#[inline(always)]
fn add_wide(total: __m256i, narrow: __m256i, scale: __m256i) -> __m256i {
    // SAFETY: only `Avx2` lanes call this.
    unsafe { _mm256_add_epi32(total, _mm256_madd_epi16(narrow, scale)) }
}

/// sum + q · x, each two products in 16 bits.
#[inline(always)]
fn add_narrow(kind: Kind, sum: __m256i, q: __m256i, x: __m256i) -> __m256i {
    // SAFETY: only `Avx2` lanes call this.
    unsafe {
        match kind {
            Kind::Unsigned(_) => {
                let sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(q, x));
                if narrow_sums(kind) > 1 { pin(sum) } else { sum }
            }
            Kind::Signed => _mm256_add_epi16(sum, _mm256_maddubs_epi16(_mm256_abs_epi8(q), _mm256_sign_epi8(x, q))),
        }
    }
}

/// Eight lanes of one dot product.
#[inline(always)]
fn dot_half<const R: usize, const W: usize>(
    kind: Kind,
    mut sum: __m256i,
    q: &[Words; W],
    half: usize,
    x: &[[u32; R]; W],
    r: usize,
) -> __m256i {
    let group = narrow_sums(kind);
    // SAFETY: only `Avx2` lanes call this.
    unsafe {
        let ones = _mm256_set1_epi16(1);
        let mut w = 0;
        while w < W {
            let mut narrow = _mm256_setzero_si256();
            let end = if w + group < W { w + group } else { W };
            for i in w..end {
                let x = _mm256_set1_epi32(x[i][r] as i32);
                let q = q[i][half];
                let pairs = match kind {
                    Kind::Unsigned(_) => _mm256_maddubs_epi16(q, x),
                    Kind::Signed => _mm256_maddubs_epi16(_mm256_abs_epi8(q), _mm256_sign_epi8(x, q)),
                };
                narrow = _mm256_add_epi16(narrow, pairs);
            }
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(narrow, ones));
            w = end;
        }
    }
    sum
}
