//! Tests that hold for every format. Fixtures: `testdata/tensor`, with the script that made them.
#![allow(clippy::unwrap_used)]

use super::*;
use half::{bf16, f16};
use proptest::prelude::*;

const BLOCKS: &str = include_str!("../../../../testdata/tensor/blocks.txt");
const QUALITY: &str = include_str!("../../../../testdata/tensor/quality.txt");

/// The constants of a format, by its type.
fn error_bound(dtype: DType) -> f32 {
    match dtype {
        DType::F32 => f32::ERROR,
        DType::F16 => f16::ERROR,
        DType::BF16 => bf16::ERROR,
        DType::Q4_0 => BlockQ4_0::ERROR,
        DType::Q4_1 => BlockQ4_1::ERROR,
        DType::Q5_0 => BlockQ5_0::ERROR,
        DType::Q5_1 => BlockQ5_1::ERROR,
        DType::Q8_0 => BlockQ8_0::ERROR,
        DType::Q2_K => BlockQ2K::ERROR,
        DType::Q3_K => BlockQ3K::ERROR,
        DType::Q4_K => BlockQ4K::ERROR,
        DType::Q5_K => BlockQ5K::ERROR,
        DType::Q6_K => BlockQ6K::ERROR,
        DType::IQ4_NL => BlockIq4Nl::ERROR,
        DType::IQ4_XS => BlockIq4Xs::ERROR,
        DType::IQ2_XXS => BlockIq2Xxs::ERROR,
        DType::IQ2_XS => BlockIq2Xs::ERROR,
        DType::IQ2_S => BlockIq2S::ERROR,
        DType::IQ3_XXS => BlockIq3Xxs::ERROR,
        DType::IQ3_S => BlockIq3S::ERROR,
        DType::NF4 => BlockNf4::ERROR,
        DType::FP4 => BlockFp4::ERROR,
        DType::Q8_24 => BlockQ8Sparse::ERROR,
        DType::Q4_24 => BlockQ4Sparse::ERROR,
        DType::MXFP4 => BlockMxfp4::ERROR,
        DType::TQ1_0 => BlockTq1_0::ERROR,
        DType::TQ2_0 => BlockTq2_0::ERROR,
    }
}

fn check_sizes<B: Block>() {
    assert_eq!((B::LEN, B::BYTES), (B::DTYPE.block_len(), B::DTYPE.block_bytes()), "{}", B::DTYPE);
}

#[test]
fn blocks_have_the_sizes_of_the_table() {
    check_sizes::<f32>();
    check_sizes::<f16>();
    check_sizes::<bf16>();
    check_sizes::<BlockQ4_0>();
    check_sizes::<BlockQ4_1>();
    check_sizes::<BlockQ5_0>();
    check_sizes::<BlockQ5_1>();
    check_sizes::<BlockQ8_0>();
    check_sizes::<BlockQ2K>();
    check_sizes::<BlockQ3K>();
    check_sizes::<BlockQ4K>();
    check_sizes::<BlockQ5K>();
    check_sizes::<BlockQ6K>();
    check_sizes::<BlockIq4Nl>();
    check_sizes::<BlockIq4Xs>();
    check_sizes::<BlockIq2Xxs>();
    check_sizes::<BlockIq2Xs>();
    check_sizes::<BlockIq2S>();
    check_sizes::<BlockIq3Xxs>();
    check_sizes::<BlockIq3S>();
    check_sizes::<BlockNf4>();
    check_sizes::<BlockFp4>();
    check_sizes::<BlockQ8Sparse>();
    check_sizes::<BlockQ4Sparse>();
    check_sizes::<BlockMxfp4>();
    check_sizes::<BlockTq1_0>();
    check_sizes::<BlockTq2_0>();
}

fn encode(dtype: DType, row: &[f32], importance: Option<&[f32]>) -> Vec<u8> {
    let mut bytes = vec![0; dtype.row_bytes(row.len()).unwrap()];
    encode_row(dtype, row, importance, &mut bytes).unwrap();
    bytes
}

fn decode(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    let mut row = vec![0.0; bytes.len() / dtype.block_bytes() * dtype.block_len()];
    decode_row(dtype, bytes, &mut row).unwrap();
    row
}

fn round_trip(dtype: DType, row: &[f32], importance: Option<&[f32]>) -> Vec<f32> {
    decode(dtype, &encode(dtype, row, importance))
}

fn from_hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

#[test]
fn decodes_blocks_of_another_implementation() {
    let mut seen = 0;
    for line in BLOCKS.lines() {
        let mut words = line.split(' ');
        let dtype = DType::from_name(words.next().unwrap()).unwrap();
        let bytes = from_hex(words.next().unwrap());
        let want: Vec<f32> =
            from_hex(words.next().unwrap()).chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        assert_eq!(decode(dtype, &bytes), want, "{dtype}");
        seen += 1;
    }
    assert_eq!(seen, 20);
}

/// The data of `rows()` in `testdata/tensor/make.py`.
fn quality_rows() -> (Vec<f32>, Vec<f32>) {
    let mut state = 7u32;
    let mut byte = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        i64::from(state >> 24)
    };
    let (mut values, mut importance) = (Vec::new(), Vec::new());
    for row in 0..16 {
        for _ in 0..256 {
            let sum = byte() + byte() + byte() + byte() - 510;
            let value = if row % 2 == 0 { sum as f64 / 4096.0 } else { sum.pow(3) as f64 / f64::from(1 << 28) };
            values.push(value as f32);
            importance.push((1 + byte()) as f32 / 256.0);
        }
    }
    (values, importance)
}

#[test]
fn errors_are_no_larger_than_those_of_ggml() {
    let (values, importance) = quality_rows();
    for line in QUALITY.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let dtype = DType::from_name(words[0]).unwrap();
        let (plain, weighted): (f64, f64) = (words[1].parse().unwrap(), words[2].parse().unwrap());
        let error = |weights: Option<&[f32]>| -> f64 {
            let decoded = round_trip(dtype, &values, weights);
            (0..values.len())
                .map(|i| f64::from(values[i] - decoded[i]).powi(2) * weights.map_or(1.0, |w| f64::from(w[i])))
                .sum()
        };
        let ratios = (error(None) / plain, error(Some(&importance)) / weighted);
        println!("{dtype}: error over that of ggml: {:.3}, with importance {:.3}", ratios.0, ratios.1);
        assert!(ratios.0 <= 1.0 && ratios.1 <= 1.0, "{dtype}: {ratios:?}");
    }
}

#[test]
fn f16_and_bf16_keep_every_finite_value() {
    for bits in 0..=u16::MAX {
        let (half, brain) = (f16::from_bits(bits), bf16::from_bits(bits));
        let mut value = [0.0];
        decode_row(DType::F16, &bits.to_le_bytes(), &mut value).unwrap();
        assert!(value[0].to_bits() == half.to_f32().to_bits());
        if half.is_finite() {
            assert_eq!(encode(DType::F16, &value, None), bits.to_le_bytes(), "f16 {bits:#06x}");
        } else {
            assert!(!value[0].is_finite());
        }
        decode_row(DType::BF16, &bits.to_le_bytes(), &mut value).unwrap();
        if !brain.is_nan() {
            assert_eq!(value[0].to_bits(), u32::from(bits) << 16);
        }
        if brain.is_finite() {
            assert_eq!(encode(DType::BF16, &value, None), bits.to_le_bytes(), "bf16 {bits:#06x}");
        }
    }
}

/// Half a unit in the last place, ties to even, for each pair of neighbours.
#[test]
fn f16_and_bf16_round_to_nearest_even() {
    for bits in 0..0x7bff {
        let (low, high) = (f16::from_bits(bits).to_f32(), f16::from_bits(bits + 1).to_f32());
        let middle = (low + high) / 2.0;
        let even = bits + bits % 2;
        assert_eq!(encode(DType::F16, &[middle], None), even.to_le_bytes());
        assert_eq!(encode(DType::F16, &[middle.next_up()], None), (bits + 1).to_le_bytes());
        assert_eq!(encode(DType::F16, &[middle.next_down()], None), bits.to_le_bytes());
    }
    for bits in 0..0x7f7fu16 {
        let middle = f32::from_bits((u32::from(bits) << 16) | 0x8000);
        let even = bits + bits % 2;
        assert_eq!(encode(DType::BF16, &[middle], None), even.to_le_bytes());
        assert_eq!(encode(DType::BF16, &[middle.next_up()], None), (bits + 1).to_le_bytes());
        assert_eq!(encode(DType::BF16, &[middle.next_down()], None), bits.to_le_bytes());
    }
}

#[test]
fn absmax_blocks_are_kept() {
    let (values, _) = quality_rows();
    for block in values.chunks(32) {
        let peak = block.iter().fold(0.0f32, |peak, x| if x.abs() > peak.abs() { *x } else { peak });
        for (dtype, levels, low, high) in
            [(DType::Q8_0, 127.0, -127.0, 127.0), (DType::Q4_0, -8.0, -8.0, 7.0), (DType::Q5_0, -16.0, -16.0, 15.0)]
        {
            let scale = f16::from_f32(peak / levels).to_f32();
            let absmax: Vec<f32> = block.iter().map(|x| (x / scale).round().clamp(low, high) * scale).collect();
            assert_eq!(round_trip(dtype, &absmax, None), absmax, "{dtype}");
        }
    }
}

#[test]
fn what_was_encoded_once_stays() {
    let (values, importance) = quality_rows();
    for dtype in [DType::Q4_0, DType::Q5_0, DType::Q8_0, DType::IQ4_NL] {
        for weights in [None, Some(&importance[..])] {
            let once = round_trip(dtype, &values, weights);
            let twice = round_trip(dtype, &once, weights);
            for ((once, twice), x) in once.chunks(32).zip(twice.chunks(32)).zip(values.chunks(32)) {
                assert_eq!(once, twice, "{dtype}: {x:?}");
            }
        }
    }
}

#[test]
fn ternary_blocks_of_both_kinds_hold_the_same_values() {
    let (values, importance) = quality_rows();
    for (values, importance) in values.chunks(256).zip(importance.chunks(256)) {
        let small = BlockTq1_0::encode(values, Some(importance));
        assert_eq!(small.to_tq2_0(), BlockTq2_0::encode(values, Some(importance)));
        let mut decoded = [0.0; 256];
        small.decode(&mut decoded);
        assert_eq!(round_trip(DType::TQ1_0, &decoded, None), decoded);
    }
    // All bytes, also those that no encoder writes.
    let bytes: Vec<u8> = (0..54).map(|i| (i * 37 + 11) as u8).collect();
    let block: BlockTq1_0 = bytemuck::pod_read_unaligned(&bytes);
    let (mut one, mut two) = ([0.0; 256], [0.0; 256]);
    block.decode(&mut one);
    block.to_tq2_0().decode(&mut two);
    assert_eq!(one, two);
}

fn assert_finite(dtype: DType, row: &[f32], importance: Option<&[f32]>) -> Vec<f32> {
    let decoded = round_trip(dtype, row, importance);
    assert!(decoded.iter().all(|x| x.is_finite()), "{dtype}: {:?} gave {decoded:?}", &row[..4]);
    decoded
}

#[test]
fn degenerate_blocks_decode_to_finite_values() {
    let mut spike = [0.0; 256];
    spike[100] = 3.0e38;
    let mut pair = [1e-3; 256];
    pair[3] = -1.0e30;
    pair[77] = 1.0e30;
    let mut tiny_and_huge = [1e-40; 256];
    tiny_and_huge[9] = 60000.0;
    let rows = [
        [0.0; 256],
        [-0.0; 256],
        [1.0; 256],
        [-1.0; 256],
        [65504.0; 256],
        [f32::MAX; 256],
        [f32::MIN; 256],
        [f32::MIN_POSITIVE; 256],
        [1e-45; 256],
        [6e-8; 256],
        [3e-8; 256],
        [-1e-6; 256],
        spike,
        pair,
        tiny_and_huge,
    ];
    let importances = [
        None,
        Some([0.0; 256]),
        Some([1e-45; 256]),
        Some([f32::MAX; 256]),
        Some([f32::INFINITY; 256]),
        Some([f32::NAN; 256]),
        Some([-1.0; 256]),
        Some(std::array::from_fn(|i| if i % 3 == 0 { 0.0 } else { 10f32.powi(i as i32 % 70 - 35) })),
    ];
    for dtype in DType::all() {
        for row in &rows {
            for importance in &importances {
                assert_finite(dtype, row, importance.as_ref().map(|w| &w[..]));
            }
        }
        assert!(assert_finite(dtype, &[0.0; 256], None).iter().all(|x| *x == 0.0), "{dtype}: zeros");
    }
}

#[test]
fn constant_blocks_are_nearly_exact() {
    // Scales of MXFP4 are powers of two.
    for dtype in DType::all().filter(|dtype| !dtype.is_sparse() && *dtype != DType::MXFP4) {
        for constant in [1.0, -1.0, 0.37, -1234.5] {
            let decoded = round_trip(dtype, &[constant; 256], None);
            let worst = decoded.iter().fold(0.0f32, |worst, x| worst.max((x - constant).abs()));
            assert!(worst <= constant.abs() / 256.0, "{dtype}: {constant} became {}", decoded[0]);
        }
    }
}

#[test]
fn importance_without_a_weight_counts_as_none() {
    let (values, _) = quality_rows();
    for dtype in DType::all() {
        let zeros = vec![0.0; values.len()];
        assert_eq!(encode(dtype, &values, Some(&zeros)), encode(dtype, &values, None), "{dtype}");
    }
}

#[test]
fn wrong_lengths_and_values_are_errors() {
    let row = [0.5f32; 32];
    assert!(matches!(
        encode_row(DType::Q4_K, &row, None, &mut [0; 144]),
        Err(TensorError::RowLength { len: 32, block_len: 256, .. })
    ));
    assert!(matches!(
        encode_row(DType::Q4_0, &row, None, &mut [0; 17]),
        Err(TensorError::ByteLength { want: 18, got: 17, .. })
    ));
    assert!(matches!(
        decode_row(DType::Q4_0, &[0; 19], &mut [0.0; 32]),
        Err(TensorError::ByteLength { want: 18, got: 19, .. })
    ));
    assert_eq!(
        encode_row(DType::Q4_0, &row, Some(&[1.0; 31]), &mut [0; 18]),
        Err(TensorError::ImportanceLength { want: 32, got: 31 })
    );
    for dtype in DType::all() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut row = [0.5f32; 256];
            row[200] = bad;
            let mut bytes = vec![0; dtype.row_bytes(256).unwrap()];
            assert_eq!(encode_row(dtype, &row, None, &mut bytes), Err(TensorError::NotFinite { index: 200 }));
        }
        assert_eq!(encode_row(dtype, &[], None, &mut []), Ok(()));
        assert_eq!(decode_row(dtype, &[], &mut []), Ok(()));
    }
}

/// Checks the promise of `Block::ERROR`, with `weights` as the importance.
fn check_bound(dtype: DType, row: &[f32], weights: &[f32]) -> Result<(), TestCaseError> {
    let decoded = round_trip(dtype, row, Some(weights));
    let len = dtype.block_len();
    for ((x, y), w) in row.chunks(len).zip(decoded.chunks(len)).zip(weights.chunks(len)) {
        let peak = x.iter().fold(0.0f32, |peak, x| peak.max(x.abs()));
        if peak < 1.0 {
            continue;
        }
        let squares: f64 = (0..len).map(|i| f64::from(w[i]) * f64::from(x[i] - y[i]).powi(2)).sum();
        let error = (squares / w.iter().copied().map(f64::from).sum::<f64>()).sqrt();
        let bound = f64::from(error_bound(dtype) * peak);
        prop_assert!(error <= bound, "{dtype}: {error} of {bound}");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn errors_stay_under_the_constant(
        row in prop::collection::vec(-1.0f32..1.0, 256),
        power in 1i32..12,
        weights in prop::collection::vec(0.001f32..1.0, 256),
        offset in prop::sample::select(vec![0.0f32, 0.5, -2.0]),
    ) {
        // Odd powers of a uniform value: from flat to a few spikes.
        let row: Vec<f32> = row.iter().map(|x| 100.0 * (x * x.abs().powi(power - 1) + offset)).collect();
        for dtype in DType::all() {
            check_bound(dtype, &row, &weights)?;
        }
    }

    #[test]
    fn any_finite_row_decodes_to_finite_values(
        row in prop::collection::vec(any::<f32>().prop_filter("finite", |x| x.is_finite()), 256),
        weights in prop::collection::vec(any::<f32>(), 256),
    ) {
        for dtype in DType::all() {
            assert_finite(dtype, &row, None);
            assert_finite(dtype, &row, Some(&weights));
        }
    }

    #[test]
    fn any_bytes_decode(bytes in prop::collection::vec(any::<u8>(), 1024)) {
        for dtype in DType::all() {
            let blocks = bytes.len() / dtype.block_bytes();
            decode(dtype, &bytes[..blocks * dtype.block_bytes()]);
        }
    }
}

/// Chooses the codes of one block anew for other values, and compares what the grid promises with what `decode` gives.
struct Regrid<'a>(&'a [f32], &'a [f32]);

impl CodedVisitor for Regrid<'_> {
    type Output = ();

    fn visit<B: Coded>(self) {
        let Self(values, others) = self;
        let block = B::encode(&values[..B::LEN], None);
        let grid = block.grid();
        let (mut codes, mut promised) = (vec![0; B::LEN], vec![0.0; B::LEN]);
        let step = B::Grid::STEP;
        for at in (0..B::LEN).step_by(step) {
            let part = at..at + step;
            let weights = vec![1.0; step];
            grid.choose(at, &others[part.clone()], &weights, &mut codes[part.clone()], &mut promised[part]);
        }
        let mut decoded = vec![0.0; B::LEN];
        block.with_codes(&codes).decode(&mut decoded);
        assert_eq!(decoded, promised, "{}", B::DTYPE);
        // Under its own scales a block of decoded values is what it was.
        let mut again = vec![0.0; B::LEN];
        for at in (0..B::LEN).step_by(step) {
            let part = at..at + step;
            let weights = vec![1.0; step];
            grid.choose(at, &decoded[part.clone()], &weights, &mut codes[part.clone()], &mut again[part]);
        }
        assert_eq!(again, decoded, "{}", B::DTYPE);
    }
}

#[test]
fn codes_chosen_anew_decode_to_what_the_grid_promised() {
    let noise = |seed: u32| -> Vec<f32> {
        (0..256u32)
            .map(|i| {
                let bits = (i + 1).wrapping_mul(2_654_435_761).wrapping_add(seed).wrapping_mul(2_246_822_519);
                (bits >> 8) as f32 / (1 << 24) as f32 - 0.5
            })
            .collect()
    };
    let (values, others) = (noise(1), noise(77));
    for dtype in DType::all() {
        assert_eq!(visit_coded(dtype, Regrid(&values, &others)).is_some(), dtype.is_quantized());
    }
}
