//! One zmm register per vector; `vpdpbusd` for the products, and AMX tiles for many rows where there are any.

use super::{Job, Kind, Lanes, Line, MatrixFour, ROWS, SPREAD};
use crate::amx;
use crate::isa::Avx512;
use std::arch::x86_64::*;

// Every `unsafe` block below calls intrinsics, which need only that the CPU has the instructions; a value of `Avx512`
// exists only if it has. Loads and stores go through references of exactly the size that is accessed.

impl<const AMX: bool> Lanes for Avx512<AMX> {
    type U = __m512i;
    type F = __m512;
    type Vector = Avx512<false>;
    type Simd = crate::simd::Avx512;

    /// `vpdpbusd` takes unsigned weights: 128 is added by flipping the top bit.
    const SIGNED_OFFSET: i32 = 128;
    const FEW_PANELS: &'static [usize] = &[8, 4, 2, 1];
    const INT_PANELS: &'static [usize] = if AMX { &[ROWS] } else { &[6, 4, 2, 1] };
    const FLOAT_PANELS: &'static [usize] = &[8, 4, 2, 1];
    const TWO_TILES: bool = true;
    const MATRIX: bool = AMX;

    fn vector(self) -> Self::Vector {
        self.plain()
    }

    fn enter<J: Job<Self>>(self, job: J) -> J::Output {
        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
        fn inside<const AMX: bool, J: Job<Avx512<AMX>>>(lanes: Avx512<AMX>, job: J) -> J::Output {
            job.run(lanes)
        }
        // SAFETY: `self` proves the features.
        unsafe { inside(self, job) }
    }

    #[inline(always)]
    fn splat(self, value: u32) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_set1_epi32(value as i32) }
    }
    #[inline(always)]
    fn load(self, line: &Line) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_load_si512(std::ptr::from_ref(line).cast()) }
    }
    #[inline(always)]
    fn store(self, value: __m512i, line: &mut Line) {
        // SAFETY: see above.
        unsafe { _mm512_store_si512(std::ptr::from_mut(line).cast(), value) }
    }
    #[inline(always)]
    fn and(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_and_si512(a, b) }
    }
    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    fn xor(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_xor_si512(a, b) }
    }
    #[inline(always)]
    fn shl(self, a: __m512i, bits: u32) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_sllv_epi32(a, _mm512_set1_epi32(bits as i32)) }
    }
    #[inline(always)]
    fn shr(self, a: __m512i, bits: u32) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_srlv_epi32(a, _mm512_set1_epi32(bits as i32)) }
    }
    #[inline(always)]
    fn sar(self, a: __m512i, bits: u32) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_srav_epi32(a, _mm512_set1_epi32(bits as i32)) }
    }
    #[inline(always)]
    fn sub(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_sub_epi32(a, b) }
    }
    #[inline(always)]
    fn mul_add(self, a: __m512i, b: __m512i, c: __m512i) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_add_epi32(_mm512_mullo_epi32(a, b), c) }
    }
    #[inline(always)]
    fn add_high(self, high: __m512i, low: __m512i) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_add_epi32(_mm512_slli_epi32::<8>(high), low) }
    }
    #[inline(always)]
    fn max(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_max_epi32(a, b) }
    }
    #[inline(always)]
    fn dot_pairs(self, sum: __m512i, pairs: __m512i, x: u32) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_dpwssd_epi32(sum, pairs, self.splat(x)) }
    }
    #[inline(always)]
    fn dot_high(self, sum: __m512i, pairs: __m512i, x: u32) -> __m512i {
        self.dot_pairs(sum, pairs, x)
    }
    #[inline(always)]
    fn mul_fractions(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_mulhrs_epi16(a, b) }
    }
    #[inline(always)]
    fn lookup(self, table: &[i8; 16], bytes: __m512i) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())), bytes) }
    }
    #[inline(always)]
    fn spread<const HALF: usize>(self, pairs: __m512i, masks: __m512i) -> __m512i {
        // SAFETY: see above; the load reads the whole table.
        unsafe {
            let table = _mm512_loadu_si512(SPREAD[HALF].as_ptr().cast());
            let first = _mm512_broadcast_i32x4(_mm_setr_epi32(0, 0x0404_0404, 0x0808_0808, 0x0c0c_0c0c));
            // The permutation looks at the low four bits alone.
            _mm512_shuffle_epi8(pairs, _mm512_or_si512(_mm512_permutexvar_epi32(masks, table), first))
        }
    }
    #[inline(always)]
    fn gather<const N: usize>(self, table: &[u32; N], index: __m512i) -> __m512i {
        const { assert!(N.is_power_of_two()) };
        let index = self.and(index, self.splat(N as u32 - 1));
        // SAFETY: see above; every index is below N.
        unsafe { _mm512_i32gather_epi32::<4>(index, table.as_ptr().cast()) }
    }
    #[inline(always)]
    fn signed(self, bytes: __m512i) -> __m512i {
        self.xor(bytes, self.splat(0x8080_8080))
    }

    #[inline(always)]
    fn dot<const R: usize, const T: usize, const W: usize>(
        self,
        _kind: Kind,
        q: &[[__m512i; W]; T],
        x: &[[u32; R]; W],
    ) -> [[__m512i; T]; R] {
        let mut sums = [[self.splat(0); T]; R];
        for w in 0..W {
            for r in 0..R {
                if T == 1 {
                    // SAFETY: see above.
                    sums[r][0] = unsafe { dot_memory(sums[r][0], q[0][w], &x[w][r]) };
                    continue;
                }
                let x = self.splat(x[w][r]);
                for t in 0..T {
                    // SAFETY: see above.
                    sums[r][t] = unsafe { _mm512_dpbusd_epi32(sums[r][t], q[t][w], x) };
                }
            }
        }
        sums
    }

    fn matrix_begin(self) {
        assert!(AMX);
        // SAFETY: an `Avx512<true>` exists only with permission.
        unsafe { amx::configure() }
    }
    #[inline(always)]
    fn matrix_planes(self, kind: Kind, offset: i32, q: __m512i, scale: __m512i, min: __m512i) -> [__m512i; 2] {
        // SAFETY: see above.
        unsafe {
            let q = match kind {
                Kind::Signed => self.signed(q),
                Kind::Unsigned(_) => _mm512_sub_epi8(q, _mm512_set1_epi8(offset as i8)),
            };
            let even = _mm512_mullo_epi16(_mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(q)), scale);
            let odd = _mm512_mullo_epi16(_mm512_srai_epi16::<8>(q), scale);
            let [even, odd] = [_mm512_add_epi16(even, min), _mm512_add_epi16(odd, min)];
            let low = self.splat(0x00ff_00ff);
            [
                _mm512_or_si512(_mm512_srli_epi16::<8>(even), _mm512_andnot_si512(low, odd)),
                _mm512_or_si512(_mm512_and_si512(even, low), _mm512_slli_epi16::<8>(odd)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn matrix_step(self, index: usize, step: usize, x: *const Line, planes: *const Line) {
        const LINE: usize = size_of::<Line>();
        let (x, high) = (x.cast(), planes.cast::<u8>());
        // SAFETY: the caller's promises. Sums take turns, so that some are computed while others are written; and so do the
        // registers of x, because a load waits for the products that still read its register.
        unsafe {
            let low = high.add(ROWS * LINE);
            if step == 0 && index.is_multiple_of(2) {
                amx::zero::<0>();
                amx::zero::<1>();
            } else if step == 0 {
                amx::zero::<2>();
                amx::zero::<3>();
            }
            if step.is_multiple_of(2) {
                amx::load::<4>(x, LINE);
            } else {
                amx::load::<5>(x, LINE);
            }
            amx::load::<6>(high, LINE);
            amx::load::<7>(low, LINE);
            match (index % 2, step % 2) {
                (0, 0) => {
                    amx::dot_signed::<0, 4, 6>();
                    amx::dot_signed_unsigned::<1, 4, 7>();
                }
                (0, _) => {
                    amx::dot_signed::<0, 5, 6>();
                    amx::dot_signed_unsigned::<1, 5, 7>();
                }
                (_, 0) => {
                    amx::dot_signed::<2, 4, 6>();
                    amx::dot_signed_unsigned::<3, 4, 7>();
                }
                _ => {
                    amx::dot_signed::<2, 5, 6>();
                    amx::dot_signed_unsigned::<3, 5, 7>();
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn matrix_store(self, index: usize, plane: usize, to: &mut [Line; ROWS]) {
        const LINE: usize = size_of::<Line>();
        let to = to.as_mut_ptr().cast();
        // SAFETY: the caller's promise; sums are 16 rows of 64 bytes.
        unsafe {
            match (index % 2, plane) {
                (0, 0) => amx::store::<0>(to, LINE),
                (0, _) => amx::store::<1>(to, LINE),
                (_, 0) => amx::store::<2>(to, LINE),
                _ => amx::store::<3>(to, LINE),
            }
        }
    }
    #[inline(always)]
    unsafe fn matrix_four(self, four: &MatrixFour) {
        const LINE: usize = size_of::<Line>();
        let MatrixFour { unsigned, steps, x, x_stride, q, q_stride, step_stride, column_stride, to, to_stride } = *four;
        // SAFETY: the caller's promises.
        unsafe {
            amx::zero::<0>();
            amx::zero::<1>();
            amx::zero::<2>();
            amx::zero::<3>();
            for step in 0..steps {
                let column = |index: usize| q.add(step * step_stride + index * column_stride).cast();
                let q_stride = q_stride * LINE;
                amx::load::<4>(x.add(step).cast(), x_stride * LINE);
                amx::load::<6>(column(0), q_stride);
                amx::load::<7>(column(1), q_stride);
                if unsigned {
                    amx::dot_unsigned_signed::<0, 4, 6>();
                    amx::load::<6>(column(2), q_stride);
                    amx::dot_unsigned_signed::<1, 4, 7>();
                    amx::load::<7>(column(3), q_stride);
                    amx::dot_unsigned_signed::<2, 4, 6>();
                    amx::dot_unsigned_signed::<3, 4, 7>();
                } else {
                    amx::dot_signed::<0, 4, 6>();
                    amx::load::<6>(column(2), q_stride);
                    amx::dot_signed::<1, 4, 7>();
                    amx::load::<7>(column(3), q_stride);
                    amx::dot_signed::<2, 4, 6>();
                    amx::dot_signed::<3, 4, 7>();
                }
            }
            amx::store::<0>(to.cast(), to_stride * LINE);
            amx::store::<1>(to.add(1).cast(), to_stride * LINE);
            amx::store::<2>(to.add(2).cast(), to_stride * LINE);
            amx::store::<3>(to.add(3).cast(), to_stride * LINE);
        }
    }
    fn matrix_end(self) {
        assert!(AMX);
        // SAFETY: as in `matrix_begin`.
        unsafe { amx::release() }
    }

    #[inline(always)]
    fn dot_signed(self, sum: __m512i, bytes: __m512i, x: u32) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_dpbusd_epi32(sum, bytes, self.splat(x)) }
    }
    #[inline(always)]
    fn dot_unsigned(self, sum: __m512i, bytes: __m512i, x: u32) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_dpbusd_epi32(sum, self.splat(x), bytes) }
    }

    #[inline(always)]
    fn to_f32(self, a: __m512i) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_cvtepi32_ps(a) }
    }
    #[inline(always)]
    fn round(self, a: __m512) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_cvtps_epi32(a) }
    }
    #[inline(always)]
    fn as_bits(self, a: __m512) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_castps_si512(a) }
    }
    #[inline(always)]
    fn as_floats(self, a: __m512i) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_castsi512_ps(a) }
    }
    #[inline(always)]
    fn load_u16(self, values: &[u16; ROWS]) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_cvtepu16_epi32(_mm256_loadu_si256(values.as_ptr().cast())) }
    }
    #[inline(always)]
    fn splat_f32(self, value: f32) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_set1_ps(value) }
    }
    #[inline(always)]
    fn load_f32(self, values: &[f32; ROWS]) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_loadu_ps(values.as_ptr()) }
    }
    #[inline(always)]
    fn store_f32(self, value: __m512, out: &mut [f32; ROWS]) {
        // SAFETY: see above.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), value) }
    }
    #[inline(always)]
    fn load_f16(self, values: &[u16; ROWS]) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(values.as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_bf16(self, values: &[u16; ROWS]) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(self.load_u16(values))) }
    }
    #[inline(always)]
    fn f16_low(self, a: __m512i) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_cvtph_ps(_mm512_cvtepi32_epi16(a)) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn max_magnitude(self, values: &[[f32; 32]]) -> u32 {
        // SAFETY: see above; the loads lie inside their arrays.
        unsafe {
            let mask = _mm512_set1_epi32(0x7fff_ffff);
            let mut max = _mm512_setzero_si512();
            for sixteen in values.as_flattened().as_chunks::<16>().0 {
                max = _mm512_max_epu32(max, _mm512_and_si512(_mm512_loadu_si512(sixteen.as_ptr().cast()), mask));
            }
            _mm512_reduce_max_epu32(max)
        }
    }
    #[inline(always)]
    fn quantize(self, values: &[f32; 32], factor: f32, out: &mut [i8; 32]) -> [i32; 2] {
        // SAFETY: see above; loads and stores lie inside the arrays.
        unsafe {
            let factor = _mm512_set1_ps(factor);
            let low = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(values.as_ptr()), factor));
            let high = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(values[16..].as_ptr()), factor));
            let bytes = _mm256_set_m128i(_mm512_cvtepi32_epi8(high), _mm512_cvtepi32_epi8(low));
            _mm256_storeu_si256(out.as_mut_ptr().cast(), bytes);
            // Sums of 8 bytes in each 64 bits, 128 too much per byte; then of 16.
            let eights = _mm256_sad_epu8(_mm256_xor_si256(bytes, _mm256_set1_epi8(-128)), _mm256_setzero_si256());
            let sums = _mm256_add_epi64(eights, _mm256_unpackhi_epi64(eights, eights));
            let sum = |half: __m128i| _mm_cvtsi128_si32(half) - 16 * 128;
            [sum(_mm256_castsi256_si128(sums)), sum(_mm256_extracti128_si256::<1>(sums))]
        }
    }

    #[inline(always)]
    fn prefetch(self, line: *const Line) {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) }
    }
}

/// `vpdpbusd` that reads x where it stands. The compiler loads the x of many products early, to registers that it does not
/// have: 8 rows of Q4_K took half as long again.
///
/// # Safety
/// The CPU has the features.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn dot_memory(sum: __m512i, q: __m512i, x: &u32) -> __m512i {
    let out;
    // SAFETY: the instruction reads one word, a reference to which is given, and touches nothing else but its registers.
    unsafe {
        std::arch::asm!(
            "vpdpbusd {sum}, {q}, dword ptr [{x}]{{1to16}}",
            sum = inlateout(zmm_reg) sum => out,
            q = in(zmm_reg) q,
            x = in(reg) x,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    out
}
