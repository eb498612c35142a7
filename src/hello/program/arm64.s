// write(1, text, length); exit(0)
        .globl _start
_start:
        mov x8, #64             // write
        mov x0, #1              // standard output
        adr x1, text
        mov x2, #length
        svc #0
        mov x8, #93             // exit
        mov x0, #0
        svc #0
text:   .incbin "hello.txt"
        length = . - text
