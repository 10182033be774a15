int cmd_generate(int argc, char **argv);
int cmd_generate(int argc, char **argv) {
    (void)argc;
    (void)argv;
    return 1;
}
