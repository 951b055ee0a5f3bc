use super::arm::{Products, Words};
use super::{Job, Kind};
use crate::isa::I8mm;

impl Products for I8mm {
    const INT_PANELS: &'static [usize] = &[4, 2, 1];

    fn enter<J: Job<Self>>(self, job: J) -> J::Output {
        #[target_feature(enable = "neon,dotprod,i8mm")]
        fn inside<J: Job<I8mm>>(lanes: I8mm, job: J) -> J::Output {
            job.run(lanes)
        }
        // SAFETY: `self` proves the features.
        unsafe { inside(self, job) }
    }

    #[inline(always)]
    fn dot<const R: usize, const T: usize, const W: usize>(
        self,
        _kind: Kind,
        start: [i32; R],
        q: &[[Words; W]; T],
        x: &[[u32; R]; W],
    ) -> [[Words; T]; R] {
        super::dotprod::dot(self, start, q, x)
    }
}
