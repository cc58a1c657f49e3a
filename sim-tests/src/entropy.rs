//! Dice and wall clock of the whole process, seeded: the one file with unsafe code.
//!
//! ring, the standard library's hash maps and tokio ask the system for randomness, and rustls asks it for the
//! time; none of them can be given another source. So the three libc functions they call are defined here. On a
//! thread that called [`seed`] they answer from the seed and from simulated time; on all others they pass the
//! call on to the kernel. `CLOCK_MONOTONIC` stays real: simulated code uses `tokio::time`.

#![allow(unsafe_code, reason = "libc functions can only be replaced by symbols of the same name")]

use std::cell::Cell;
use std::time::Duration;

/// The wall clock at the start of every simulation: 2026-01-01 UTC.
pub const EPOCH: Duration = Duration::from_secs(1_767_225_600);

thread_local! {
    static STATE: Cell<Option<u64>> = const { Cell::new(None) };
    static ASKING_TIME: Cell<bool> = const { Cell::new(false) };
}

/// Makes this thread's randomness and wall clock a function of `seed`, from here on.
pub fn seed(seed: u64) {
    STATE.set(Some(mix(seed)));
}

/// Next number of the thread's sequence; `None` on a thread that was not seeded.
fn next() -> Option<u64> {
    let state = STATE.try_with(Cell::get).ok().flatten()?.wrapping_add(0x9E37_79B9_7F4A_7C15);
    STATE.set(Some(state));
    Some(mix(state))
}

/// The finalizer of splitmix64.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Fills `len` bytes at `buffer` if this thread is seeded.
///
/// # Safety
/// `buffer` must be valid for writes of `len` bytes.
unsafe fn fill(buffer: *mut u8, len: usize) -> bool {
    if len == 0 || STATE.try_with(Cell::get).ok().flatten().is_none() {
        return false;
    }
    // SAFETY: the caller vouches for the buffer.
    for chunk in unsafe { std::slice::from_raw_parts_mut(buffer, len) }.chunks_mut(8) {
        chunk.copy_from_slice(&next().unwrap_or_default().to_le_bytes()[..chunk.len()]);
    }
    true
}

/// Simulated time since 1970, if this thread is seeded and is not asking already.
fn wall() -> Option<Duration> {
    STATE.try_with(Cell::get).ok().flatten()?;
    if ASKING_TIME.replace(true) {
        return None;
    }
    let now = turmoil::since_epoch().unwrap_or(EPOCH);
    ASKING_TIME.set(false);
    Some(now)
}

/// # Safety
/// As getrandom(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut u8, len: usize, flags: u32) -> isize {
    // SAFETY: the caller of getrandom vouches for the buffer.
    if unsafe { fill(buffer, len) } {
        return len as isize;
    }
    // SAFETY: passed on as it came.
    unsafe { kernel(libc::SYS_getrandom, [buffer as i64, len as i64, i64::from(flags), 0, 0, 0]) as isize }
}

/// # Safety
/// As clock_gettime(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(id: libc::clockid_t, out: *mut libc::timespec) -> i32 {
    if matches!(id, libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE)
        && let Some(now) = wall()
    {
        let value = libc::timespec { tv_sec: now.as_secs() as i64, tv_nsec: i64::from(now.subsec_nanos()) };
        // SAFETY: the caller of clock_gettime vouches for `out`.
        unsafe { out.write(value) };
        return 0;
    }
    // SAFETY: passed on as it came.
    unsafe { kernel(libc::SYS_clock_gettime, [i64::from(id), out as i64, 0, 0, 0, 0]) as i32 }
}

/// Six integer arguments travel in the same registers whether the callee is variadic or not (System V x86-64,
/// AAPCS64), so a fixed signature serves.
///
/// # Safety
/// As syscall(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syscall(number: i64, a: i64, b: i64, c: i64, d: i64, e: i64, f: i64) -> i64 {
    // SAFETY: the caller vouches for the buffer of SYS_getrandom.
    if number == libc::SYS_getrandom && unsafe { fill(a as *mut u8, b as usize) } {
        return b;
    }
    // SAFETY: passed on as it came.
    unsafe { kernel(number, [a, b, c, d, e, f]) }
}

/// The system call itself, with libc's convention for errors.
///
/// # Safety
/// As syscall(2).
unsafe fn kernel(number: i64, [a, b, c, d, e, f]: [i64; 6]) -> i64 {
    let result: i64;
    // SAFETY: the arguments are those of the caller, in the registers that the kernel reads.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::asm!("syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c,
            in("r10") d, in("r8") e, in("r9") f, out("rcx") _, out("r11") _);
    }
    // SAFETY: the arguments are those of the caller, in the registers that the kernel reads.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!("svc 0", in("x8") number, inlateout("x0") a => result, in("x1") b, in("x2") c,
            in("x3") d, in("x4") e, in("x5") f);
    }
    if (-4095..0).contains(&result) {
        // SAFETY: errno is this thread's own.
        unsafe { *libc::__errno_location() = -result as i32 };
        return -1;
    }
    result
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasher, Hasher};

    fn draw() -> (u64, u64) {
        let hash = std::collections::hash_map::RandomState::new().build_hasher().finish();
        let wall = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        (hash, wall.as_secs())
    }

    #[test]
    fn a_seeded_thread_repeats_itself_and_an_unseeded_one_does_not() {
        let seeded = || {
            std::thread::spawn(|| {
                super::seed(7);
                draw()
            })
            .join()
            .expect("the thread ends")
        };
        assert_eq!(seeded(), seeded());
        assert_eq!(seeded().1, super::EPOCH.as_secs());
        let free = || std::thread::spawn(draw).join().expect("the thread ends");
        assert_ne!(free().0, free().0);
    }
}
