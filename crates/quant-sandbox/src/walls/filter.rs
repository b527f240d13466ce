//! The calls of the kernel that a program in the sandbox does not have, as a filter for bubblewrap's `--seccomp`.
//!
//! Memory of files without a name and of System V segments counts towards no limit of a process; the rest are ways to more rights
//! than a program needs. See seccomp(2); the program is of classic BPF (`struct sock_filter`: code, two jumps, a constant).

use libc::c_long;

/// The calls that are refused with `EPERM`.
const REFUSED: [c_long; 33] = [
    // Memory beside the limits.
    libc::SYS_memfd_create,
    libc::SYS_memfd_secret,
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_semget,
    libc::SYS_msgget,
    libc::SYS_mq_open,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    // Namespaces and mounts.
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_mount_setattr,
    libc::SYS_open_by_handle_at,
    // Large parts of the kernel that faults are found in.
    libc::SYS_bpf,
    libc::SYS_userfaultfd,
    libc::SYS_perf_event_open,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
];

#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: u32 = 0xC000_00B7;

/// Numbers from here on are those of x32 on x86-64: the same calls again, by other numbers.
const X32: u32 = 0x4000_0000;

const LOAD: u16 = 0x20;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;
/// `SECCOMP_RET_ALLOW`, and `SECCOMP_RET_ERRNO` with `EPERM`.
const ALLOW: u32 = 0x7FFF_0000;
const REFUSE: u32 = 0x0005_0001;
/// Where `struct seccomp_data` has the number of the call and the architecture.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;

/// The filter in the bytes that the kernel takes.
pub(crate) fn filter() -> Vec<u8> {
    let calls = REFUSED.len() as u8;
    // Jumps count the instructions that are left out. Behind the calls: allow, then refuse.
    let mut program = vec![
        (LOAD, 0, 0, ARCHITECTURE),
        (JUMP_IF_EQUAL, 0, calls + 3, AUDIT_ARCH),
        (LOAD, 0, 0, NUMBER),
        (JUMP_IF_AT_LEAST, calls + 1, 0, X32),
    ];
    for (at, call) in (0_u8..).zip(REFUSED) {
        program.push((JUMP_IF_EQUAL, calls - at, 0, call as u32));
    }
    program.push((RETURN, 0, 0, ALLOW));
    program.push((RETURN, 0, 0, REFUSE));
    let bytes = program.into_iter().flat_map(|(code, yes, no, constant): (u16, u8, u8, u32)| {
        let mut bytes = code.to_ne_bytes().to_vec();
        bytes.extend([yes, no]);
        bytes.extend(constant.to_ne_bytes());
        bytes
    });
    bytes.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the filter says to a call, by the rules of classic BPF.
    fn judge(architecture: u32, number: u32) -> u32 {
        let program = filter();
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let code: &[u8] = &program[8 * at..8 * at + 8];
            let constant = u32::from_ne_bytes(code[4..].try_into().unwrap());
            let jump = |yes: bool| usize::from(if yes { code[2] } else { code[3] });
            at += 1;
            match u16::from_ne_bytes([code[0], code[1]]) {
                LOAD => accumulator = if constant == NUMBER { number } else { architecture },
                JUMP_IF_EQUAL => at += jump(accumulator == constant),
                JUMP_IF_AT_LEAST => at += jump(accumulator >= constant),
                RETURN => return constant,
                other => panic!("instruction {other}"),
            }
        }
    }

    #[test]
    fn listed_calls_and_foreign_ones_are_refused() {
        for call in REFUSED {
            assert_eq!(judge(AUDIT_ARCH, call as u32), REFUSE, "{call}");
        }
        for call in [libc::SYS_read, libc::SYS_clone, libc::SYS_execve, libc::SYS_mmap, libc::SYS_futex] {
            assert_eq!(judge(AUDIT_ARCH, call as u32), ALLOW, "{call}");
        }
        assert_eq!(judge(AUDIT_ARCH, X32 + 1), REFUSE);
        assert_eq!(judge(0x4000_0003, libc::SYS_read as u32), REFUSE);
    }
}
