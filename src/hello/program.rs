//! The program in the image: a Linux executable that writes a text and exits with 0.
//!
//! It is assembled here, because Larder is built without cross compilers, and an embedded binary could not be
//! reviewed. The numbers are from the ELF-64 object file format, the manuals of the two processors, and the
//! kernel's system call tables.

/// The supported processors, with the names that images use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Architecture {
    Amd64,
    Arm64,
}

/// The load address of the program, as linkers choose it.
const BASE: u64 = 0x40_0000;
const ELF_HEADER_BYTES: u16 = 64;
const PROGRAM_HEADER_BYTES: u16 = 56;
/// The largest page size of any supported kernel.
const PAGE_BYTES: u64 = 0x1_0000;

impl Architecture {
    pub(super) const ALL: [Architecture; 2] = [Architecture::Amd64, Architecture::Arm64];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Architecture::Amd64 => "amd64",
            Architecture::Arm64 => "arm64",
        }
    }

    /// `e_machine`.
    fn machine(self) -> u16 {
        match self {
            Architecture::Amd64 => 62,
            Architecture::Arm64 => 183,
        }
    }

    /// `write(1, text, length); exit(0)`, with the text directly after it.
    fn instructions(self, length: u16) -> Vec<u8> {
        match self {
            Architecture::Amd64 => amd64(length),
            Architecture::Arm64 => arm64(length),
        }
    }
}

/// An executable that writes `text`, of at most 64 KiB, to standard output.
pub(super) fn program(architecture: Architecture, text: &'static str) -> Vec<u8> {
    // The text is a constant of this module with a few hundred bytes.
    let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
    let code = architecture.instructions(length);
    let headers = u64::from(ELF_HEADER_BYTES + PROGRAM_HEADER_BYTES);
    let size = headers + (code.len() + text.len()) as u64;
    let mut file = Vec::new();
    // e_ident: 64 bits, little-endian, version 1; e_type: an executable.
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend(2u16.to_le_bytes());
    file.extend(architecture.machine().to_le_bytes());
    file.extend(1u32.to_le_bytes());
    // e_entry, e_phoff, e_shoff.
    [BASE + headers, ELF_HEADER_BYTES.into(), 0]
        .iter()
        .for_each(|it| file.extend(it.to_le_bytes()));
    file.extend(0u32.to_le_bytes());
    // e_ehsize, e_phentsize, e_phnum; no sections.
    for half in [ELF_HEADER_BYTES, PROGRAM_HEADER_BYTES, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    // The only segment: PT_LOAD, readable and executable, the complete file.
    [1u32, 5].iter().for_each(|word| file.extend(word.to_le_bytes()));
    for address in [0, BASE, BASE, size, size, PAGE_BYTES] {
        file.extend(address.to_le_bytes());
    }
    file.extend(code);
    file.extend(text.as_bytes());
    file
}

fn amd64(length: u16) -> Vec<u8> {
    let mut code = vec![0xb8, 1, 0, 0, 0]; // mov eax, 1: write
    code.extend([0xbf, 1, 0, 0, 0]); // mov edi, 1: standard output
    code.extend([0x48, 0x8d, 0x35, 16, 0, 0, 0]); // lea rsi, [rip + 16]: after the last instruction
    code.push(0xba); // mov edx, length
    code.extend(u32::from(length).to_le_bytes());
    code.extend([0x0f, 0x05]); // syscall
    code.extend([0x31, 0xff]); // xor edi, edi
    code.extend([0xb8, 60, 0, 0, 0]); // mov eax, 60: exit
    code.extend([0x0f, 0x05]); // syscall
    code
}

fn arm64(length: u16) -> Vec<u8> {
    let movz = |register: u32, value: u16| 0xd280_0000 | u32::from(value) << 5 | register;
    // The address of the given number of instructions ahead.
    let adr = |register: u32, instructions: u32| 0x1000_0000 | instructions << 5 | register;
    let svc = 0xd400_0001;
    let code = [
        movz(0, 1), // standard output
        adr(1, 7),
        movz(2, length),
        movz(8, 64), // write
        svc,
        movz(0, 0),
        movz(8, 93), // exit
        svc,
    ];
    code.iter().flat_map(|instruction: &u32| instruction.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn the_program_for_this_processor_runs() {
        let own = match std::env::consts::ARCH {
            "x86_64" => Architecture::Amd64,
            "aarch64" => Architecture::Arm64,
            // There is no program for other processors.
            _ => return,
        };
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hello");
        fs::write(&path, program(own, "good morning\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let output = Command::new(&path).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!((&*output.stdout, &*output.stderr), (&b"good morning\n"[..], &b""[..]));
    }

    #[test]
    fn instructions_for_arm64_match_an_assemblers_output() {
        // as: mov x0,#1; adr x1,.+28; mov x2,#13; mov x8,#64; svc #0; mov x0,#0; mov x8,#93; svc #0
        let expected: [u32; 8] = [
            0xd280_0020,
            0x1000_00e1,
            0xd280_01a2,
            0xd280_0808,
            0xd400_0001,
            0xd280_0000,
            0xd280_0ba8,
            0xd400_0001,
        ];
        let bytes: Vec<u8> = expected.iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(arm64(13), bytes);
    }
}
