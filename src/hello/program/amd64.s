# write(1, text, length); exit(0)
        .globl _start
_start:
        mov $1, %eax            # write
        mov $1, %edi            # standard output
        lea text(%rip), %rsi
        mov $length, %edx
        syscall
        mov $60, %eax           # exit
        xor %edi, %edi
        syscall
text:   .incbin "hello.txt"
        length = . - text
