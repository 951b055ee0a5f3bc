//! Numbers of a few bits in rows of 32-bit words.

/// How small numbers stand in a row of 32-bit words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bits {
    bits: u32,
    /// Numbers may begin in one word and end in the next.
    is_dense: bool,
}

impl Bits {
    pub(crate) fn dense(bits: u32) -> Self {
        Self { bits, is_dense: true }
    }

    /// The layout in which `count` numbers take `words`.
    pub(crate) fn of_words(bits: u32, count: usize, words: usize) -> Option<Self> {
        [true, false].map(|is_dense| Self { bits, is_dense }).into_iter().find(|layout| layout.words(count) == words)
    }

    pub(crate) fn words(self, count: usize) -> usize {
        match self.is_dense {
            true => (count as u128 * u128::from(self.bits)).div_ceil(32) as usize,
            false => count.div_ceil((32 / self.bits) as usize),
        }
    }

    /// Word and bit at which number `index` begins.
    pub(crate) fn place(self, index: usize) -> (usize, u32) {
        match self.is_dense {
            true => {
                let bit = index as u64 * u64::from(self.bits);
                ((bit / 32) as usize, (bit % 32) as u32)
            }
            false => {
                let per_word = (32 / self.bits) as usize;
                (index / per_word, (index % per_word) as u32 * self.bits)
            }
        }
    }

    /// The number as it stands there.
    #[inline]
    pub(crate) fn read_plain(self, word: impl Fn(usize) -> u32, index: usize) -> u32 {
        let (at, bit) = self.place(index);
        let low = word(at) >> bit;
        let taken = 32 - bit;
        let all = if self.bits > taken { low | word(at + 1) << taken } else { low };
        all & ((1 << self.bits) - 1)
    }

    /// The number, less 2^(bits − 1).
    pub(crate) fn read(self, word: impl Fn(usize) -> u32, index: usize) -> i8 {
        (self.read_plain(word, index) as i32 - (1 << (self.bits - 1))) as i8
    }

    /// All of them, each plus 2^(bits − 1).
    pub(crate) fn write(self, numbers: &[i8]) -> Vec<u32> {
        let mut words = vec![0u32; self.words(numbers.len())];
        for (index, &number) in numbers.iter().enumerate() {
            let code = (i32::from(number) + (1 << (self.bits - 1))) as u32 & ((1 << self.bits) - 1);
            let (at, bit) = self.place(index);
            words[at] |= code << bit;
            if self.bits > 32 - bit {
                words[at + 1] |= code >> (32 - bit);
            }
        }
        words
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn numbers_of_every_width_come_back() {
        for bits in 2..=8 {
            for is_dense in [true, false] {
                let layout = Bits { bits, is_dense };
                let range = 1i32 << bits;
                let numbers: Vec<i8> = (0..70).map(|i| (i * 13 % range - range / 2) as i8).collect();
                let words = layout.write(&numbers);
                assert_eq!(Bits::of_words(bits, 70, words.len()).unwrap().words(70), words.len());
                let back: Vec<i8> = (0..70).map(|index| layout.read(|at| words[at], index)).collect();
                assert_eq!(back, numbers);
            }
        }
        // 0, 1, … 7 of three bits, from the lowest bit up: 0b…_111_110_…_001_000.
        assert_eq!(Bits::dense(3).write(&[-4, -3, -2, -1, 0, 1, 2, 3]), [0x00fa_c688]);
    }
}
