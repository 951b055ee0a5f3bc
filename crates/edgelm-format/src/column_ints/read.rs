//! One matrix: its parts checked, its rows as blocks and as values.

use crate::{
    CodedMatrix, FormatError, IntLayout, Ints, Reordered, Source, TensorInfo,
    bits::Bits,
    fault::{Fault, Name, malformed},
    gptq::BITS,
    safetensors::SafeTensors,
};
use edgelm_tensor::{DType, block::decode_row, write_ints};
use half::f16;
use std::ops::Range;

/// Values of a block.
const BLOCK: usize = 32;

/// Rows that are unpacked together: their words stand side by side.
const STRIP: usize = 64;

/// Where in a word of eight the AWQ layout puts each output.
const INTERLEAVED: [u32; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// How quants and zeros stand in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    /// `qweight` `[K · bits / 32, N]`, consecutive inputs from the lowest bit up; `qzeros` `[G, N · bits / 32]`.
    AlongInputs {
        /// Files hold the zero less this.
        zero_less: u8,
    },
    /// `qweight` `[K, N / 8]`, `qzeros` `[G, N / 8]`: eight outputs to a word, of which half i is output
    /// \[0, 2, 4, 6, 1, 3, 5, 7\]\[i\].
    Interleaved,
}

/// What a config says of every matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Parts {
    pub(crate) bits: u32,
    pub(crate) packing: Packing,
    /// `None`: one for all inputs.
    pub(crate) group_size: Option<usize>,
    /// Inputs are in the order of their groups, also where the file does not say.
    pub(crate) is_in_order: bool,
    /// Bits and groups are those of the shapes, where they are not these.
    pub(crate) varies: bool,
}

/// A matrix of integers in the layout of GPTQ or AWQ, borrowed from the file.
pub struct ColumnInts<'a> {
    bits: u32,
    packing: Packing,
    shape: [usize; 2],
    quants: &'a [u8],
    zeros: &'a [u8],
    scales: &'a [u8],
    scale_dtype: DType,
    groups: usize,
    group_size: usize,
    /// The group of each input, where they are not in order.
    group_of: Option<Vec<u32>>,
    sources: Vec<(&'a Source, &'a [u8])>,
}

/// Some rows, unpacked.
struct Strip {
    rows: usize,
    /// quant − zero, `[rows, K]`.
    codes: Vec<i16>,
    /// `[G, rows]`.
    scales: Vec<f32>,
    /// `[G, rows]`.
    zeros: Vec<i16>,
}

impl<'a> ColumnInts<'a> {
    /// The matrix that stands for `{module}.weight`. `None` if the file has no `qweight` of it.
    pub(crate) fn open(file: &'a SafeTensors, module: &str, parts: Parts) -> Result<Option<Self>, FormatError> {
        let name = format!("{module}.qweight");
        let Some((info, source)) = file.info(&name).zip(file.source_of(&name)) else { return Ok(None) };
        Self::checked(file, module, parts, &info)
            .map(Some)
            .map_err(|fault| fault.within(format_args!("tensor {}", Name(&name))).at(source.path()))
    }

    fn checked(file: &'a SafeTensors, module: &str, parts: Parts, weight: &TensorInfo<'a>) -> Result<Self, Fault> {
        let part = |suffix: &str| file.info(&format!("{module}.{suffix}"));
        let needed = |suffix: &str| match part(suffix) {
            Some(info) => Ok(info),
            None => malformed!("`{suffix}` is missing"),
        };
        let packing = parts.packing;
        let (zeros, scales) = (needed("qzeros")?, needed("scales")?);
        let bits = match (parts.varies, packing) {
            (true, Packing::AlongInputs { .. }) => bits_of(&zeros, &scales).unwrap_or(parts.bits),
            _ => parts.bits,
        };
        let ([words, width], quants) = words_of(weight, "qweight")?;
        let whole = |words: usize| words.checked_mul(32).map(|all| (all / bits as usize, all % bits as usize));
        let (n, k) = match packing {
            Packing::AlongInputs { .. } => (Some((width, 0)), whole(words)),
            Packing::Interleaved => (whole(width), Some((words, 0))),
        };
        let (Some((n, 0)), Some((k, 0))) = (n, k) else {
            return malformed!("has shape {:?}, which is not that of whole rows of {bits} bits", weight.shape);
        };
        // Sixteen bits and more for each value in what follows.
        if n.checked_mul(k).and_then(|all| all.checked_mul(8)).is_none() {
            return malformed!("shape [{n}, {k}] overflows");
        }
        let mut group_size = parts.group_size.unwrap_or(k).max(1);
        if let (true, &[groups, _]) = (parts.varies, scales.shape)
            && groups != k.div_ceil(group_size)
            && groups > 0
            && k.is_multiple_of(groups)
        {
            group_size = k / groups;
        }
        let groups = k.div_ceil(group_size);
        let zero_bits = n.checked_mul(bits as usize).filter(|all| all.is_multiple_of(32));
        let (found, zeros) = words_of(&zeros, "qzeros")?;
        if zero_bits.map(|all| [groups, all / 32]) != Some(found) {
            return malformed!("`qzeros` has shape {found:?} for {groups} groups of {n} outputs of {bits} bits");
        }
        let (Some(scale_dtype), Some(scale_bytes)) = (scales.dtype, scales.bytes) else {
            return malformed!("`scales` is stored as {}", scales.type_name);
        };
        if *scales.shape != [groups, n] {
            return malformed!("`scales` has shape {:?}, must be [{groups}, {n}]", scales.shape);
        }
        let group_of = match part("g_idx") {
            Some(info) => group_of(&info, k, groups)?,
            None if parts.is_in_order => None,
            None => return malformed!("`g_idx` is missing"),
        };
        let is_in_order = |groups: &Vec<u32>| groups.iter().enumerate().all(|(k, g)| k / group_size == *g as usize);
        let mut sources = Vec::new();
        for suffix in ["qweight", "qzeros", "scales"] {
            let name = format!("{module}.{suffix}");
            if let (Some(source), Some(TensorInfo { bytes: Some(bytes), .. })) =
                (file.source_of(&name), file.info(&name))
            {
                sources.push((source, bytes));
            }
        }
        Ok(Self {
            bits,
            packing,
            shape: [n, k],
            quants,
            zeros,
            scales: scale_bytes,
            scale_dtype,
            groups,
            group_size,
            group_of: group_of.filter(|groups| !is_in_order(groups)),
            sources,
        })
    }

    /// The format of blocks whose columns are in the order of their groups. Reads all zeros.
    fn block_dtype(&self) -> DType {
        let fits = self.shape[1].is_multiple_of(BLOCK) && (self.groups <= 1 || self.group_size.is_multiple_of(BLOCK));
        match self.bits {
            _ if !fits => DType::F16,
            2 | 3 => DType::Q4_0,
            4 if self.is_centred() => DType::Q4_0,
            4 => DType::Q5_0,
            _ if self.is_centred() => DType::Q8_0,
            _ => DType::F16,
        }
    }

    /// True if every zero is the middle one.
    fn is_centred(&self) -> bool {
        let less = match self.packing {
            Packing::AlongInputs { zero_less } => u32::from(zero_less),
            Packing::Interleaved => 0,
        };
        let middle = (1 << (self.bits - 1)) - less;
        let word = (0..32 / self.bits).fold(0u32, |word, at| word | middle << (at * self.bits));
        self.zeros.as_chunks().0.iter().all(|bytes| u32::from_le_bytes(*bytes) == word)
    }

    fn group(&self, k: usize) -> usize {
        self.group_of.as_ref().map_or(k / self.group_size, |groups| groups[k] as usize)
    }

    /// Zeros `[G, rows]` of some rows.
    fn zeros(&self, first: usize, rows: usize) -> Vec<i16> {
        let [n, _] = self.shape;
        let layout = Bits::dense(self.bits);
        let per_group = n * self.bits as usize / 32;
        let zero = |g: usize, row: usize| match self.packing {
            Packing::AlongInputs { zero_less } => {
                let number = layout.read_plain(|at| word(self.zeros, g * per_group + at), row);
                number as i16 + i16::from(zero_less)
            }
            Packing::Interleaved => {
                (word(self.zeros, g * per_group + row / 8) >> (4 * INTERLEAVED[row % 8]) & 15) as i16
            }
        };
        (0..self.groups)
            .flat_map(|g| (first..first + rows).map(move |row| (g, row)))
            .map(|(g, row)| zero(g, row))
            .collect()
    }

    /// Unpacks rows, at most [`STRIP`] of them.
    fn strip(&self, first: usize, rows: usize) -> Strip {
        let [n, k] = self.shape;
        let layout = Bits::dense(self.bits);
        let mask = (1u32 << self.bits) - 1;
        let half = |row: usize| 4 * INTERLEAVED[(first + row) % 8];
        let zeros = self.zeros(first, rows);
        let mut scales = vec![0.0f32; self.groups * rows];
        for g in 0..self.groups {
            let start = (g * n + first) * self.scale_dtype.block_bytes();
            let bytes = &self.scales[start..start + rows * self.scale_dtype.block_bytes()];
            // Lengths were checked when the file was opened.
            if decode_row(self.scale_dtype, bytes, &mut scales[g * rows..][..rows]).is_err() {
                scales[g * rows..][..rows].fill(f32::NAN);
            }
        }
        // Inputs are unpacked for all rows at once, and a block of them then row by row: both in the order of memory.
        let mut codes = vec![0i16; k * rows];
        let mut block = [[0i16; STRIP]; BLOCK];
        for start in (0..k).step_by(BLOCK) {
            let inputs = start..k.min(start + BLOCK);
            for (k, codes) in inputs.clone().zip(&mut block) {
                let zeros = &zeros[self.group(k) * rows..][..rows];
                let codes = codes.iter_mut().zip(zeros).enumerate();
                match self.packing {
                    Packing::AlongInputs { .. } => {
                        let (at, bit) = layout.place(k);
                        let words = |at: usize| &self.quants[4 * (at * n + first)..][..4 * rows];
                        let (low, taken) = (words(at).as_chunks::<4>().0, 32 - bit);
                        let high = if self.bits > taken { words(at + 1).as_chunks::<4>().0 } else { &[] };
                        for (row, (code, zero)) in codes {
                            let low = u32::from_le_bytes(low[row]) >> bit;
                            let high = high.get(row).map_or(0, |word| u32::from_le_bytes(*word) << taken);
                            *code = ((low | high) & mask) as i16 - zero;
                        }
                    }
                    Packing::Interleaved => {
                        for (row, (code, zero)) in codes {
                            let word = word(self.quants, k * (n / 8) + (first + row) / 8);
                            *code = (word >> half(row) & mask) as i16 - zero;
                        }
                    }
                }
            }
            for (row, codes) in codes.chunks_exact_mut(k.max(1)).enumerate() {
                let codes = &mut codes[inputs.clone()];
                codes.iter_mut().zip(&block).for_each(|(code, of_input)| *code = of_input[row]);
            }
        }
        Strip { rows, codes, scales, zeros }
    }

    /// The largest zero, as quants count.
    fn largest_zero(&self) -> i16 {
        let [n, _] = self.shape;
        let strips = (0..n).step_by(STRIP).map(|first| self.zeros(first, STRIP.min(n - first)));
        strips.flatten().max().unwrap_or(0)
    }

    /// What signed codes have more as quants.
    fn middle(&self) -> i16 {
        if self.bits > 4 { 128 } else { 8 }
    }

    /// The columns group by group, where all groups are of one size: that of the file.
    fn even_order(&self) -> Option<Vec<u32>> {
        let order = self.order()?;
        let is_of_group = |(at, column): (usize, &u32)| self.group(*column as usize) == at / self.group_size;
        order.iter().enumerate().all(is_of_group).then_some(order)
    }

    /// Calls `body(row of the strip, strip)` for every row.
    fn each_row(&self, rows: Range<usize>, mut body: impl FnMut(usize, &Strip)) {
        for first in rows.clone().step_by(STRIP) {
            let strip = self.strip(first, STRIP.min(rows.end - first));
            (0..strip.rows).for_each(|row| body(row, &strip));
        }
    }

    /// Rows of blocks with one scale, columns in the given order.
    fn ordered_blocks(&self, rows: Range<usize>, dtype: DType, column: impl Fn(usize) -> usize) -> Vec<u8> {
        let k = self.shape[1];
        let mut out = Vec::with_capacity(rows.len() * k / BLOCK * dtype.block_bytes());
        self.each_row(rows, |row, strip| {
            let of_row = &strip.codes[row * k..][..k];
            for start in (0..k).step_by(BLOCK) {
                let codes = std::array::from_fn(|i| of_row[column(start + i)] as i8);
                let scale = strip.scales[self.group(column(start)) * strip.rows + row];
                let scale = f16::from_f32(scale.clamp(f16::MIN.to_f32(), f16::MAX.to_f32()));
                write_ints(dtype, scale, &codes, &mut out);
            }
        });
        out
    }

    /// The columns group by group, where every group then is whole blocks.
    fn order(&self) -> Option<Vec<u32>> {
        let groups = self.group_of.as_ref()?;
        let mut sizes = vec![0usize; self.groups];
        groups.iter().for_each(|g| sizes[*g as usize] += 1);
        if !sizes.iter().all(|size| size.is_multiple_of(BLOCK)) {
            return None;
        }
        let mut order: Vec<u32> = (0..groups.len() as u32).collect();
        order.sort_by_key(|k| groups[*k as usize]);
        Some(order)
    }
}

impl CodedMatrix for ColumnInts<'_> {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn dtype(&self) -> DType {
        if self.group_of.is_some() { DType::F16 } else { self.block_dtype() }
    }

    fn blocks(&self, rows: Range<usize>) -> Vec<u8> {
        match self.dtype() {
            DType::F16 => {
                let mut values = vec![0.0; rows.len() * self.shape[1]];
                self.values(rows, &mut values);
                values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect()
            }
            dtype => self.ordered_blocks(rows, dtype, |k| k),
        }
    }

    fn values(&self, rows: Range<usize>, out: &mut [f32]) {
        let k = self.shape[1];
        assert_eq!(out.len(), rows.len() * k, "values are not those of the rows");
        let mut rest = out.chunks_exact_mut(k.max(1));
        self.each_row(rows, |row, strip| {
            let Some(out) = rest.next() else { return };
            let codes = &strip.codes[row * k..][..k];
            let scales: Vec<f32> = strip.scales.iter().skip(row).step_by(strip.rows).copied().collect();
            match &self.group_of {
                None => {
                    let size = self.group_size;
                    for ((out, codes), scale) in out.chunks_mut(size).zip(codes.chunks(size)).zip(&scales) {
                        out.iter_mut().zip(codes).for_each(|(out, code)| *out = scale * f32::from(*code));
                    }
                }
                Some(groups) => {
                    for ((out, code), group) in out.iter_mut().zip(codes).zip(groups) {
                        *out = scales[*group as usize] * f32::from(*code);
                    }
                }
            }
        });
    }

    fn reordered_dtype(&self) -> Option<DType> {
        self.order()?;
        Some(self.block_dtype()).filter(|dtype| *dtype != DType::F16)
    }

    fn reordered(&self) -> Option<Reordered> {
        let dtype = self.reordered_dtype()?;
        let order = self.order()?;
        let bytes = self.ordered_blocks(0..self.shape[0], dtype, |k| order[k] as usize);
        Some(Reordered { order, dtype, bytes })
    }

    /// Zeros of version 1 may be one more than the codes reach: those of 4 bits are then stored as 8.
    fn int_layout(&self) -> Option<IntLayout> {
        let k = self.shape[1];
        let group = if self.groups <= 1 { k } else { self.group_size };
        let order = match self.group_of {
            Some(_) => Some(self.even_order()?),
            None => None,
        };
        let bits = match (self.bits, self.largest_zero()) {
            (..=4, ..=15) => 4,
            (..=4, _) | (_, ..=255) => 8,
            _ => return None,
        };
        let is_centred = self.bits != 3 && self.bits != 2 && self.is_centred();
        k.is_multiple_of(group.max(1)).then_some(IntLayout {
            bits,
            group,
            has_zeros: !is_centred,
            has_offsets: false,
            order,
        })
    }

    fn ints(&self, rows: Range<usize>, out: &mut Ints) {
        let Some(IntLayout { has_zeros, order, .. }) = self.int_layout() else { return };
        let (k, middle) = (self.shape[1], self.middle());
        let column = |at: usize| order.as_ref().map_or(at, |order| order[at] as usize);
        self.each_row(rows, |row, strip| {
            let of = |g: usize| g * strip.rows + row;
            out.scales.extend((0..self.groups).map(|g| strip.scales[of(g)]));
            if has_zeros {
                out.zeros.extend((0..self.groups).map(|g| (strip.zeros[of(g)] - middle) as i8));
            }
            out.codes.extend((0..k).map(|at| {
                let at = column(at);
                (strip.codes[row * k + at] + strip.zeros[of(self.group(at))] - middle) as i8
            }));
        });
    }

    fn release(&self) {
        self.sources.iter().for_each(|(source, bytes)| source.release(bytes));
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes[4 * at..].first_chunk().map_or(0, |word| u32::from_le_bytes(*word))
}

/// Bits of a quant, by the shapes of zeros `[G, N · bits / 32]` and scales `[G, N]`.
fn bits_of(zeros: &TensorInfo<'_>, scales: &TensorInfo<'_>) -> Option<u32> {
    let (&[_, words], &[_, n]) = (zeros.shape, scales.shape) else { return None };
    BITS.into_iter().find(|bits| n.checked_mul(*bits as usize) == words.checked_mul(32))
}

/// Shape and bytes of a matrix of words.
fn words_of<'a>(info: &TensorInfo<'a>, name: &str) -> Result<([usize; 2], &'a [u8]), Fault> {
    match (info.type_name, info.shape, info.bytes) {
        ("I32", &[rows, columns], Some(bytes)) => Ok(([rows, columns], bytes)),
        (kind, shape, _) => malformed!("`{name}` is {kind} {shape:?}, must be I32 and a matrix"),
    }
}

/// The group of each input.
fn group_of(info: &TensorInfo<'_>, k: usize, groups: usize) -> Result<Option<Vec<u32>>, Fault> {
    let ("I32", &[length], Some(bytes)) = (info.type_name, info.shape, info.bytes) else {
        return malformed!("`g_idx` is {} {:?}, must be I32 [{k}]", info.type_name, info.shape);
    };
    if length != k {
        return malformed!("`g_idx` has {length} groups for {k} inputs");
    }
    let found: Vec<u32> = bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
    if let Some((at, group)) = found.iter().enumerate().find(|(_, group)| **group as usize >= groups) {
        return malformed!("`g_idx` names group {} of {groups} for input {at}", *group as i32);
    }
    Ok(Some(found))
}
