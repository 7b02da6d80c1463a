"""Runs code that a model wrote where it can reach nothing: no network, no file to write, no other process, little time.

Started as a script of its own, with Python's standard library alone. A seccomp filter (Linux) refuses the system calls
by which code reaches out of its process, and cannot be taken off again. What it prints goes nowhere. On standard output
stand `locked `, and a `.` for each test that passed or an `x`.
"""

import ctypes
import json
import os
import platform
import resource
import signal
import struct
import sys
from typing import Any

_REFUSED = {  # name: numbers on x86-64 and on arm64, where it exists
    # files: what makes, changes or removes one; opening to write is told by its flags
    "creat": (85, None), "truncate": (76, 45), "rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276),
    "mkdir": (83, None), "mkdirat": (258, 34), "rmdir": (84, None), "unlink": (87, None), "unlinkat": (263, 35),
    "link": (86, None), "linkat": (265, 37), "symlink": (88, None), "symlinkat": (266, 36), "mknod": (133, None),
    "mknodat": (259, 33), "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None),
    "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88), "setxattr": (188, 5),
    "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15),
    "fremovexattr": (199, 16), "openat2": (437, 437), "open_by_handle_at": (304, 265), 
    "name_to_handle_at": (303, 264), "quotactl": (179, 60), "quotactl_fd": (443, 443), "flock": (73, 32),
    "ioctl": (16, 29), "fanotify_init": (300, 262),
    # networks
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "accept": (43, 202), "accept4": (288, 242), "sendto": (44, 206), "sendmsg": (46, 211), "sendmmsg": (307, 269),
    # other processes
    "execve": (59, 221), "execveat": (322, 281), "fork": (57, None), "vfork": (58, None),
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_open": (434, 434), "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438), "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "prlimit64": (302, 261), "setpriority": (141, 140), "ioprio_set": (251, 30), "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119), "sched_setaffinity": (203, 122), "sched_setattr": (314, 274),
    "migrate_pages": (256, 238), "move_pages": (279, 239), "process_madvise": (440, 440),
    "process_mrelease": (448, 448), "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190),
    "semop": (65, 193), "semtimedop": (220, 192), "semctl": (66, 191), "msgget": (68, 186), "msgsnd": (69, 189),
    "msgrcv": (70, 188), "msgctl": (71, 187), "mq_open": (240, 180), "mq_unlink": (241, 181),
    # this process: who it is, and that it ends with the one that started it
    "prctl": (157, 167), "setuid": (105, 146), "setgid": (106, 144), "setreuid": (113, 145), "setregid": (114, 143),
    "setresuid": (117, 147), "setresgid": (119, 149), "setfsuid": (122, 151), "setfsgid": (123, 152),
    "setgroups": (116, 159), "capset": (126, 91),
    # the kernel
    "io_uring_setup": (425, 425), "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97), "setns": (308, 268), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fspick": (433, 433), "mount_setattr": (442, 442), "acct": (163, 89), "settimeofday": (164, 170),
    "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266), "sethostname": (170, 161),
    "setdomainname": (171, 162), "kexec_file_load": (320, 294),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225),
}  # fmt: skip
_ARCHITECTURES = {"x86_64": (0, 0xC000003E, 2, 257, 56, 72), "aarch64": (1, 0xC00000B7, None, 56, 220, 25)}
"""Column in the table, the kernel's name of it, and the numbers of open, openat, clone and fcntl."""
_CLONE3, _NEWER = 435, 451
"""Like calls from the second number on, which this table does not know, it is as if absent: libc does without it."""
_LOAD, _EQUAL, _AT_LEAST, _BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _REFUSE, _ABSENT = 0x7FFF0000, 0x80000000, 0x00050000 | 13, 0x00050000 | 38  # EACCES, ENOSYS
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CLONE_THREAD = 0x10000
_F_GETLK, _F_DUPFD_CLOEXEC = 5, 1030
_X32 = 0x40000000


def filter_program(machine: str) -> bytes:
    """The seccomp filter for `machine` (platform.machine()). Raises KeyError for one that is not known."""
    column, audit, open_, openat, clone, fcntl = _ARCHITECTURES[machine]
    program: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, 4),  # the architecture of the call
        (_EQUAL, 1, 0, audit),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),  # its number
    ]
    if machine == "x86_64":
        program += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _KILL)]
    program += [(_AT_LEAST, 1, 0, _NEWER), (_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _ABSENT)]
    for number in (numbers[column] for numbers in _REFUSED.values()):
        if number is not None:
            program += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _REFUSE)]
    for call, argument in ((open_, 1), (openat, 2)):
        if call is not None:  # the flags that open to write
            flags = 16 + 8 * argument
            program += [
                (_EQUAL, 0, 4, call),
                (_LOAD, 0, 0, flags),
                (_BITS, 0, 1, _WRITING),
                (_RETURN, 0, 0, _REFUSE),
                (_RETURN, 0, 0, _ALLOW),
            ]
    program += [  # what fcntl does to descriptors; not its locks, leases and signals, which reach other processes
        (_EQUAL, 0, 5, fcntl),
        (_LOAD, 0, 0, 24),
        (_AT_LEAST, 0, 2, _F_GETLK),
        (_EQUAL, 1, 0, _F_DUPFD_CLOEXEC),
        (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _ALLOW),
    ]
    program += [  # a new thread, but no new process
        (_EQUAL, 0, 4, clone),
        (_LOAD, 0, 0, 16),
        (_BITS, 1, 0, _CLONE_THREAD),
        (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)


def lock_in() -> None:
    """Take from this process, for good, what reaches out of it. Raises OSError or KeyError where that cannot be."""
    program = filter_program(platform.machine())
    libc = ctypes.CDLL(None, use_errno=True)
    instructions = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(instructions))
    if libc.prctl(38, 1, 0, 0, 0) != 0:  # PR_SET_NO_NEW_PRIVS
        raise OSError(ctypes.get_errno(), "no_new_privs")
    if libc.prctl(22, 2, ctypes.c_char_p(header), 0, 0) != 0:  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        raise OSError(ctypes.get_errno(), "seccomp")


def _limit(seconds: float, memory_mb: int) -> None:
    for resource_kind, limit in (
        (resource.RLIMIT_CPU, int(seconds) + 1),
        (resource.RLIMIT_AS, memory_mb * 2**20),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        resource.setrlimit(resource_kind, (limit, limit))


def _end_with(parent: int) -> None:
    """As `tuitune.parent`, of which nothing can be imported here: the code can hold a clock back, but not this."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def main() -> None:
    """Read the work from standard input, lock in, run it, and leave without anything the code may have prepared."""
    work: dict[str, Any] = json.loads(sys.stdin.buffer.read())
    out = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    _end_with(work["parent"])
    _limit(work["seconds"], work["memory_mb"])
    lock_in()
    # The code can write to this pipe too, and claim to have passed: that costs no more than a wrong reward.
    write, leave = os.write, os._exit
    write(out, b"locked ")
    signal.setitimer(signal.ITIMER_REAL, work["seconds"])  # SIGALRM ends the process
    names: dict[str, Any] = {"__name__": "__main__"}
    try:
        exec(compile(work["code"], "<reply>", "exec"), names)  # noqa: S102  # it is what this process is for
    except BaseException:
        leave(0)
    for test in work["tests"]:
        try:
            exec(compile(test, "<test>", "exec"), names)  # noqa: S102
        except BaseException:
            write(out, b"x")
        else:
            write(out, b".")
    leave(0)


if __name__ == "__main__":
    main()
