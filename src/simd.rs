//! Kernels compiled for the processor that they run on.
//!
//! A [`Kernel`] is plain code. [`SimdLevel::run`] calls the version that the compiler made for that level.
//! Kernels use integers or unfused floats, so all versions give equal results. Code with intrinsics takes a
//! [`V3`], [`Vnni`] or [`Amx`], which exist only after the processor was checked.
#![expect(unsafe_code, reason = "calling a function compiled for detected instructions")]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __cpuid, __cpuid_count, __m128i, __m256i, _MM_HINT_T0, _mm_prefetch, _mm_unpackhi_epi16,
    _mm_unpackhi_epi32, _mm_unpackhi_epi64, _mm_unpacklo_epi16, _mm_unpacklo_epi32, _mm_unpacklo_epi64,
    _mm256_unpackhi_epi16, _mm256_unpackhi_epi32, _mm256_unpackhi_epi64, _mm256_unpacklo_epi16,
    _mm256_unpacklo_epi32, _mm256_unpacklo_epi64,
};
#[cfg(target_arch = "x86_64")]
use std::iter;
#[cfg(target_arch = "x86_64")]
use std::sync::OnceLock;

use bytemuck::{Pod, Zeroable};

/// Computation. `run` and all functions that it calls must be `#[inline(always)]`, or the compiler excludes
/// them from the wider versions.
pub trait Kernel {
    /// Result of the computation.
    type Output;

    /// Runs the computation.
    fn run(self) -> Self::Output;
}

/// Processor instructions that code may use.
#[derive(Clone, Copy, Debug)]
pub enum SimdLevel {
    /// Instructions of every processor of the target.
    Portable,
    /// Instructions of x86-64-v3.
    #[cfg(target_arch = "x86_64")]
    V3(V3),
    /// AVX-512 with byte products.
    #[cfg(target_arch = "x86_64")]
    Vnni(Vnni),
    /// AVX-512 with byte products, and byte tiles.
    #[cfg(target_arch = "x86_64")]
    Amx(Amx),
}

impl SimdLevel {
    /// Returns the best level of this processor.
    pub fn best() -> Self {
        Self::available().pop().unwrap_or(Self::Portable)
    }

    /// Returns the level for short work, which AVX-512 would not speed up: x86-64-v3 if the processor has it.
    #[inline]
    pub fn short() -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Some(v3) = V3::detect() {
            return Self::V3(v3);
        }
        Self::Portable
    }

    /// Returns the level for long loops over bytes: AVX-512 if the processor has it.
    #[inline]
    pub fn long() -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Some(vnni) = Vnni::detect() {
            return Self::Vnni(vnni);
        }
        Self::short()
    }

    /// Returns all levels of this processor, the best last.
    pub fn available() -> Vec<Self> {
        #[cfg(target_arch = "x86_64")]
        {
            let levels =
                [V3::detect().map(Self::V3), Vnni::detect().map(Self::Vnni), Amx::detect().map(Self::Amx)];
            iter::once(Self::Portable).chain(levels.into_iter().flatten()).collect()
        }
        #[cfg(not(target_arch = "x86_64"))]
        vec![Self::Portable]
    }

    /// Runs a kernel, compiled for this level.
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Self::Portable => kernel.run(),
            #[cfg(target_arch = "x86_64")]
            Self::V3(v3) => v3.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Vnni(vnni) | Self::Amx(Amx { vnni }) => vnni.run(kernel),
        }
    }
}

/// Runs a kernel of short work.
#[inline]
pub fn run<K: Kernel>(kernel: K) -> K::Output {
    SimdLevel::short().run(kernel)
}

/// Proof that this processor has x86-64-v3: AVX2, FMA, BMI1, BMI2 and LZCNT.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug)]
pub struct V3(());

#[cfg(target_arch = "x86_64")]
impl V3 {
    /// Checks the processor; `None` if it lacks an instruction.
    #[inline]
    pub fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("lzcnt");
        has.then_some(Self(()))
    }

    /// Runs a kernel with these instructions.
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt")]
        fn run<K: Kernel>(kernel: K) -> K::Output {
            kernel.run()
        }
        // SAFETY: the value proves that the processor has the instructions.
        unsafe { run(kernel) }
    }
}

/// Proof that this processor has AVX-512 F, BW, DQ, VL and VNNI, and with them AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug)]
pub struct Vnni(());

#[cfg(target_arch = "x86_64")]
impl Vnni {
    /// Checks the processor; `None` if it lacks an instruction.
    #[inline]
    pub fn detect() -> Option<Self> {
        let has = V3::detect().is_some()
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni");
        has.then_some(Self(()))
    }

    /// Runs a kernel with these instructions.
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
        fn run<K: Kernel>(kernel: K) -> K::Output {
            kernel.run()
        }
        // SAFETY: the value proves that the processor has the instructions.
        unsafe { run(kernel) }
    }
}

/// Proof that this processor has byte AMX and the instructions of [`Vnni`], and that the kernel allows AMX.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug)]
pub struct Amx {
    /// Instructions that every processor with AMX also has.
    pub vnni: Vnni,
}

#[cfg(target_arch = "x86_64")]
impl Amx {
    /// Checks the processor, and asks for the kernel's permission, which then holds for the whole process.
    /// `None` if an instruction is missing or the kernel refuses.
    pub fn detect() -> Option<Self> {
        static IS_USABLE: OnceLock<bool> = OnceLock::new();
        let vnni = Vnni::detect()?;
        IS_USABLE.get_or_init(|| has_byte_tiles() && may_use_tiles()).then_some(Self { vnni })
    }
}

/// Checks the bits of AMX-TILE and AMX-INT8 (Intel's manual, CPUID, leaf 7).
#[cfg(target_arch = "x86_64")]
fn has_byte_tiles() -> bool {
    const TILE_AND_INT8: u32 = 0b11 << 24;
    #[allow(unused_unsafe, reason = "safe in later versions of Rust")]
    // SAFETY: every processor of the target has the instruction.
    let (leaves, features) = unsafe { (__cpuid(0).eax, __cpuid_count(7, 0).edx) };
    leaves >= 7 && features & TILE_AND_INT8 == TILE_AND_INT8
}

/// Requests tile registers from Linux, which grants them only on request (`Documentation/arch/x86/xstate.rst`).
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn may_use_tiles() -> bool {
    const REQUEST_PERMISSION: libc::c_long = 0x1023;
    const TILE_DATA: libc::c_long = 18;
    // SAFETY: the call takes two numbers and only changes which registers this process may use.
    unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0 }
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn may_use_tiles() -> bool {
    false
}

/// Bytes aligned to a cache line, as a misaligned load of 64 bytes reads two lines.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Line(pub [u8; Self::BYTES]);

impl Line {
    /// Number of bytes in a line.
    pub const BYTES: usize = 64;
    /// Line of zeros.
    pub const ZERO: Self = Self([0; Self::BYTES]);
}

// SAFETY: zeros are bytes.
unsafe impl Zeroable for Line {}
// SAFETY: an array of bytes without padding: the alignment is its size.
unsafe impl Pod for Line {}

/// Prefetches memory that is read soon, if the target can.
#[inline]
pub fn prefetch(values: &[f32]) {
    /// Number of f32 in a cache line.
    #[cfg(target_arch = "x86_64")]
    const LINE: usize = 16;
    #[cfg(target_arch = "x86_64")]
    for line in values.chunks(LINE) {
        // SAFETY: a prefetch does not access memory; every processor of the target has it.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = values;
}

/// Transposes a tile.
#[inline(always)]
pub fn transposed(rows: [[u16; 8]; 8]) -> [[u16; 8]; 8] {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE2 is part of x86-64.
    return bytemuck::cast(unsafe { transposed_x86(bytemuck::cast(rows)) });
    #[cfg(not(target_arch = "x86_64"))]
    return std::array::from_fn(|row| std::array::from_fn(|column| rows[column][row]));
}

/// Defines a function that transposes the tiles in the halves of registers with these instructions.
#[cfg(target_arch = "x86_64")]
macro_rules! transpose {
    ($(#[$attribute:meta])* $visibility:vis fn $name:ident, $feature:literal, $register:ty,
     $low_16:ident, $high_16:ident, $low_32:ident, $high_32:ident, $low_64:ident, $high_64:ident) => {
        $(#[$attribute])*
        #[inline]
        #[target_feature(enable = $feature)]
        $visibility fn $name(rows: [$register; 8]) -> [$register; 8] {
            let pairs = |x, y| [$low_16(x, y), $high_16(x, y)];
            let quads = |x, y| [$low_32(x, y), $high_32(x, y)];
            let halves = |x, y| [$low_64(x, y), $high_64(x, y)];
            let [ab, ab_high] = pairs(rows[0], rows[1]);
            let [cd, cd_high] = pairs(rows[2], rows[3]);
            let [ef, ef_high] = pairs(rows[4], rows[5]);
            let [gh, gh_high] = pairs(rows[6], rows[7]);
            let [top_01, top_23] = quads(ab, cd);
            let [top_45, top_67] = quads(ab_high, cd_high);
            let [low_01, low_23] = quads(ef, gh);
            let [low_45, low_67] = quads(ef_high, gh_high);
            let [first, second] = halves(top_01, low_01);
            let [third, fourth] = halves(top_23, low_23);
            let [fifth, sixth] = halves(top_45, low_45);
            let [seventh, eighth] = halves(top_67, low_67);
            [first, second, third, fourth, fifth, sixth, seventh, eighth]
        }
    };
}

#[cfg(target_arch = "x86_64")]
transpose!(
    fn transposed_x86, "sse2", __m128i, _mm_unpacklo_epi16, _mm_unpackhi_epi16, _mm_unpacklo_epi32,
    _mm_unpackhi_epi32, _mm_unpacklo_epi64, _mm_unpackhi_epi64
);

#[cfg(target_arch = "x86_64")]
transpose!(
    /// Transposes the two tiles in the halves of the registers.
    ///
    /// # Safety
    /// The processor must have AVX2, as [`V3`] proves.
    pub fn transposed_two, "avx2", __m256i, _mm256_unpacklo_epi16, _mm256_unpackhi_epi16, _mm256_unpacklo_epi32,
    _mm256_unpackhi_epi32, _mm256_unpacklo_epi64, _mm256_unpackhi_epi64
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_columns() {
        let rows = std::array::from_fn(|row| std::array::from_fn(|column| (row * 8 + column) as u16));
        let turned = transposed(rows);
        for row in 0..8 {
            for column in 0..8 {
                assert_eq!(turned[row][column], rows[column][row]);
            }
        }
    }
}
