//! Runs the instructions of AMX on processors that lack them.
//!
//! A processor without tiles raises a signal at each of their instructions. The handler here decodes the bytes that the compiler
//! emitted, does what the manual says of the instruction to registers of its own, one set for each thread, and goes on behind it. What
//! it does not know, and what the manual calls undefined (a product without a configuration, say), ends the test as it would
//! end a program.

use std::cell::UnsafeCell;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Proof that tile instructions run, on the processor or here.
pub(in crate::arch) struct Installed(());

/// Tile instructions that were emulated, and threads that have a configuration.
static EXECUTED: AtomicUsize = AtomicUsize::new(0);
static CONFIGURED: AtomicUsize = AtomicUsize::new(0);

/// Installs the handler, where the processor has no tiles.
pub(in crate::arch) fn install() -> Installed {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if is_needed() {
            // SAFETY: the handler touches nothing but the state of its own thread and the operands of the instruction.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = handle as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO;
                assert_eq!(libc::sigaction(libc::SIGILL, &raw const action, std::ptr::null_mut()), 0);
            }
        }
    });
    Installed(())
}

/// Whether the processor has no tiles of its own.
pub(super) fn is_needed() -> bool {
    crate::arch::processor::tiles().is_none()
}

/// How many instructions have been emulated so far.
pub(super) fn executed() -> usize {
    EXECUTED.load(Ordering::Relaxed)
}

/// Threads whose registers are set up.
pub(super) fn configured() -> usize {
    CONFIGURED.load(Ordering::Relaxed)
}

const REGISTERS: usize = 8;
const ROWS: usize = 16;
const ROW_BYTES: usize = 64;

/// What a thread has of tile registers.
struct Tiles {
    is_configured: bool,
    rows: [usize; REGISTERS],
    bytes: [usize; REGISTERS],
    data: [[[u8; ROW_BYTES]; ROWS]; REGISTERS],
}

impl Tiles {
    const INITIAL: Self = Self {
        is_configured: false,
        rows: [0; REGISTERS],
        bytes: [0; REGISTERS],
        data: [[[0; ROW_BYTES]; ROWS]; REGISTERS],
    };
}

thread_local! {
    static TILES: UnsafeCell<Tiles> = const { UnsafeCell::new(Tiles::INITIAL) };
}

extern "C" fn handle(_signal: libc::c_int, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel's context of the interrupted thread, which runs nothing else meanwhile.
    unsafe {
        let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let code = registers[libc::REG_RIP as usize] as *const u8;
        let length = TILES.with(|tiles| step(&mut *tiles.get(), code, registers));
        match length {
            Some(length) => {
                registers[libc::REG_RIP as usize] += length;
                EXECUTED.fetch_add(1, Ordering::Relaxed);
            }
            // Run again, with nobody to catch it.
            None => {
                libc::signal(libc::SIGILL, libc::SIG_DFL);
            }
        }
    }
}

/// Where the kernel keeps the general registers, by their number in an instruction.
const PLACES: [libc::c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// The memory an instruction names.
struct Memory {
    /// Base and displacement.
    start: i64,
    /// The scaled index: of tile instructions the distance of rows.
    index: i64,
}

/// Executes the instruction at `code` and gives its length; none where it is none of those known here, or undefined.
///
/// # Safety
/// `code` can be read, and so can what the instruction names; what it writes can be written.
unsafe fn step(tiles: &mut Tiles, code: *const u8, registers: &[libc::greg_t]) -> Option<i64> {
    // SAFETY: an instruction is read no further than it is known to go.
    let byte = |i: usize| unsafe { *code.add(i) };
    let (first, second) = (byte(1), byte(2));
    let (map, wide, long) = (first & 0x1f, second >> 7, second >> 2 & 1);
    if byte(0) != 0xc4 || map != 2 || wide != 0 || long != 0 {
        return None;
    }
    let (x, b) = (usize::from(first >> 6 & 1 == 0), usize::from(first >> 5 & 1 == 0));
    let third = usize::from(!second >> 3 & 0xf);
    let (prefix, opcode, modrm) = (second & 3, byte(3), byte(4));
    let (mode, reg, rm) = (modrm >> 6, usize::from(modrm >> 3 & 7), usize::from(modrm & 7));
    let general = |number: usize| registers[PLACES[number] as usize];

    let mut length = 5;
    let memory = (mode != 3).then(|| {
        let (mut base, mut index) = (rm | b << 3, 0);
        if rm == 4 {
            let sib = byte(5);
            length += 1;
            base = usize::from(sib & 7) | b << 3;
            let number = usize::from(sib >> 3 & 7) | x << 3;
            // The number of the stack pointer means none.
            index = if number == 4 { 0 } else { general(number) << (sib >> 6) };
        }
        let displacement = match mode {
            1 => i64::from(byte(length).cast_signed()),
            2 => i64::from(i32::from_le_bytes([0, 1, 2, 3].map(|i| byte(length + i)))),
            _ => 0,
        };
        length += [0, 1, 4][usize::from(mode)];
        // Base 5 without a displacement is another way of addressing, which none of our instructions uses.
        let known = mode != 0 || base & 7 != 5;
        known.then(|| Memory { start: general(base).wrapping_add(displacement), index })
    });
    let memory = match memory {
        Some(None) => return None,
        Some(memory) => memory,
        None => None,
    };
    // SAFETY: forwarded from the caller.
    unsafe { execute(tiles, (prefix, opcode), [reg, rm, third], memory)? };
    i64::try_from(length).ok()
}

/// # Safety
/// What the memory names is readable, or writable for stores.
unsafe fn execute(
    tiles: &mut Tiles,
    instruction: (u8, u8),
    [to, left, right]: [usize; 3],
    memory: Option<Memory>,
) -> Option<()> {
    // Prefixes: none, 66, F3, F2.
    match (instruction, memory) {
        ((0, 0x49), Some(memory)) => {
            // SAFETY: 64 bytes by the caller's word.
            configure(tiles, unsafe { &*(memory.start as *const [u8; 64]) })
        }
        ((0, 0x49), None) => {
            if tiles.is_configured {
                CONFIGURED.fetch_sub(1, Ordering::Relaxed);
            }
            *tiles = Tiles::INITIAL;
            Some(())
        }
        ((3, 0x49), None) => {
            tiles.data[to] = [[0; ROW_BYTES]; ROWS];
            tiles.is_configured.then_some(())
        }
        ((1 | 3, 0x4b), Some(memory)) => {
            tiles.data[to] = [[0; ROW_BYTES]; ROWS];
            let bytes = tiles.bytes[to];
            for (i, row) in tiles.data[to].iter_mut().take(tiles.rows[to]).enumerate() {
                let from = memory.start.wrapping_add(memory.index.wrapping_mul(i as i64));
                // SAFETY: a row of the operand.
                unsafe { std::ptr::copy_nonoverlapping(from as *const u8, row.as_mut_ptr(), bytes) };
            }
            tiles.is_configured.then_some(())
        }
        ((2, 0x4b), Some(memory)) => {
            for (i, row) in tiles.data[to].iter().take(tiles.rows[to]).enumerate() {
                let place = memory.start.wrapping_add(memory.index.wrapping_mul(i as i64));
                // SAFETY: a row of the operand.
                unsafe { std::ptr::copy_nonoverlapping(row.as_ptr(), place as *mut u8, tiles.bytes[to]) };
            }
            tiles.is_configured.then_some(())
        }
        ((3, 0x5e), None) => multiply(tiles, [to, left, right], dot_bytes),
        ((2, 0x5c), None) => multiply(tiles, [to, left, right], dot_pairs),
        _ => None,
    }
}

/// `ldtilecfg`.
fn configure(tiles: &mut Tiles, config: &[u8; 64]) -> Option<()> {
    let row_bytes = |i: usize| usize::from(u16::from_le_bytes([config[16 + 2 * i], config[17 + 2 * i]]));
    let rows = |i: usize| usize::from(config[48 + i]);
    let reserved = config[1..16].iter().chain(&config[32..48]).chain(&config[56..64]);
    let fits = (0..REGISTERS).all(|i| row_bytes(i) <= ROW_BYTES && rows(i) <= ROWS);
    if config[0] != 1 || !fits || reserved.into_iter().any(|&byte| byte != 0) {
        return None;
    }
    if !tiles.is_configured {
        CONFIGURED.fetch_add(1, Ordering::Relaxed);
    }
    *tiles = Tiles::INITIAL;
    tiles.is_configured = true;
    for i in 0..REGISTERS {
        (tiles.bytes[i], tiles.rows[i]) = (row_bytes(i), rows(i));
    }
    Some(())
}

/// What a product does to a row of sums: words of a row of A, and the rows of B.
type Dot = fn(&mut [[u8; 4]], &[[u8; 4]], &[[u8; ROW_BYTES]]);

fn multiply(tiles: &mut Tiles, [to, left, right]: [usize; 3], dot: Dot) -> Option<()> {
    let depth = tiles.rows[right];
    let distinct = to != left && to != right && left != right;
    let fits = tiles.bytes[left] == 4 * depth
        && tiles.rows[to] == tiles.rows[left]
        && tiles.bytes[to] == tiles.bytes[right];
    if !tiles.is_configured || !distinct || !fits {
        return None;
    }
    for i in 0..tiles.rows[to] {
        let (a, b) = (tiles.data[left][i], tiles.data[right]);
        let columns = tiles.bytes[to] / 4;
        let (sums, _) = tiles.data[to][i].as_chunks_mut::<4>();
        dot(&mut sums[..columns], &a.as_chunks::<4>().0[..depth], &b[..depth]);
    }
    Some(())
}

/// Signed bytes, four products to a sum of 32 bits.
fn dot_bytes(sums: &mut [[u8; 4]], a: &[[u8; 4]], b: &[[u8; ROW_BYTES]]) {
    for (a, b) in a.iter().zip(b) {
        for (sum, b) in sums.iter_mut().zip(b.as_chunks::<4>().0) {
            let products =
                a.iter().zip(b).map(|(&a, &b)| i32::from(a.cast_signed()) * i32::from(b.cast_signed()));
            *sum = products.fold(i32::from_le_bytes(*sum), i32::wrapping_add).to_le_bytes();
        }
    }
}

/// Pairs of bf16: the low and the high halves summed apart, then both added to the sum.
fn dot_pairs(sums: &mut [[u8; 4]], a: &[[u8; 4]], b: &[[u8; ROW_BYTES]]) {
    let float = |low: u8, high: u8| flushed(f32::from_le_bytes([0, 0, low, high]));
    for (n, sum) in sums.iter_mut().enumerate() {
        let (mut low, mut high) = (0.0, 0.0);
        for (a, b) in a.iter().zip(b) {
            let b = b.as_chunks::<4>().0[n];
            low = flushed(float(a[0], a[1]).mul_add(float(b[0], b[1]), low));
            high = flushed(float(a[2], a[3]).mul_add(float(b[2], b[3]), high));
        }
        let old = flushed(f32::from_le_bytes(*sum));
        *sum = flushed(old + flushed(low + high)).to_le_bytes();
    }
}

/// Subnormal numbers count as zero, and become it.
fn flushed(x: f32) -> f32 {
    if x.is_subnormal() { 0.0_f32.copysign(x) } else { x }
}
