package main

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"
)

// Completions know what the help says, and nothing else: an option that is in
// no help is not offered.

// helpLine is a line of a help text that describes an option.
var helpLine = regexp.MustCompile(`(?m)^  (-{1,2}[a-z][a-z-]*)( [A-Z]+)?  +(\S.*)$`)

// help is the text that the command prints for --help.
func (c *command) help() string {
	var b bytes.Buffer
	if c.main != nil {
		c.main([]string{"--help"}, &b, &b)
	} else {
		c.printHelp(&b)
	}
	return b.String()
}

// A suggestion is something to complete, with what it is for.
type suggestion struct {
	word, value, about string
}

func (c *command) suggestions() []suggestion {
	var list []suggestion
	for _, m := range helpLine.FindAllStringSubmatch(c.help(), -1) {
		list = append(list, suggestion{m[1], strings.TrimSpace(m[2]), m[3]})
	}
	return append(list, suggestion{word: "--help", about: "say more about this command"})
}

// choices are the words that the command takes as its argument, if its usage
// lists them as in "a|b|c".
func (c *command) choices() []string {
	if !strings.Contains(c.arguments, "|") {
		return nil
	}
	return strings.Split(c.arguments, "|")
}

// takesFile says whether the value or the argument of that name is a file.
func takesFile(name string) bool { return name == "FILE" }

var shells = map[string]func([]*command) string{"bash": bashCompletion, "fish": fishCompletion, "zsh": zshCompletion}

func runCompletion(p *process, in input) int {
	if len(in.arguments) != 1 || shells[in.arguments[0]] == nil {
		return p.usageError(in.command.name, errNoShell)
	}
	fmt.Fprint(p.stdout, shells[in.arguments[0]](commands()))
	return exitOK
}

func bashCompletion(commands []*command) string {
	var b strings.Builder
	b.WriteString("# bash completion for sealane\n\n_sealane() {\n" +
		"    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} words='' files=''\n" +
		"    if [ \"$COMP_CWORD\" -eq 1 ]; then\n" +
		"        COMPREPLY=($(compgen -W '" + strings.Join(names(commands), " ") + " help --help --version' -- \"$cur\"))\n" +
		"        return\n    fi\n    case ${COMP_WORDS[1]}:$prev in\n")
	for _, c := range commands {
		for _, s := range c.suggestions() {
			if takesFile(s.value) {
				fmt.Fprintf(&b, "    %s:%s) files=only ;;\n", c.name, s.word)
			} else if s.value != "" {
				fmt.Fprintf(&b, "    %s:%s) return ;;\n", c.name, s.word)
			}
		}
	}
	b.WriteString("    *)\n        case ${COMP_WORDS[1]} in\n")
	for _, c := range commands {
		var words []string
		for _, s := range c.suggestions() {
			words = append(words, s.word)
		}
		fmt.Fprintf(&b, "        %s) words='%s'", c.name, strings.Join(append(c.choices(), words...), " "))
		if takesFile(c.arguments) {
			b.WriteString(" files=too")
		}
		b.WriteString(" ;;\n")
	}
	fmt.Fprintf(&b, "        help) words='%s' ;;\n", strings.Join(names(commands), " "))
	b.WriteString("        esac ;;\n    esac\n" +
		"    COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n" +
		"    if [ -n \"$files\" ]; then\n" +
		"        compopt -o filenames\n" +
		"        mapfile -t -O \"${#COMPREPLY[@]}\" COMPREPLY < <(compgen -f -- \"$cur\")\n" +
		"    fi\n}\n\ncomplete -F _sealane sealane\n")
	return b.String()
}

func names(commands []*command) []string {
	list := make([]string, len(commands))
	for i, c := range commands {
		list[i] = c.name
	}
	return list
}

func fishCompletion(commands []*command) string {
	var b strings.Builder
	b.WriteString("# fish completion for sealane\n\ncomplete -c sealane -f\n")
	for _, c := range commands {
		fmt.Fprintf(&b, "complete -c sealane -n __fish_use_subcommand -a %s -d %s\n", c.name, fishQuote(c.summary))
	}
	for _, c := range commands {
		when := fishQuote("__fish_seen_subcommand_from " + c.name)
		if words := c.choices(); words != nil {
			fmt.Fprintf(&b, "complete -c sealane -n %s -a %s\n", when, fishQuote(strings.Join(words, " ")))
		}
		if takesFile(c.arguments) {
			fmt.Fprintf(&b, "complete -c sealane -n %s -F\n", when)
		}
		for _, s := range c.suggestions() {
			kind, name := "-l", strings.TrimPrefix(s.word, "--")
			if name == s.word {
				kind, name = "-s", s.word[1:]
			}
			value := ""
			if takesFile(s.value) {
				value = " -r -F"
			} else if s.value != "" {
				value = " -x"
			}
			fmt.Fprintf(&b, "complete -c sealane -n %s %s %s%s -d %s\n", when, kind, name, value, fishQuote(s.about))
		}
	}
	return b.String()
}

// fishQuote quotes for fish, which knows \\ and \' within single quotes.
func fishQuote(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'"
}

func zshCompletion(commands []*command) string {
	var b strings.Builder
	b.WriteString("#compdef sealane\n\n_sealane() {\n    local -a commands\n    commands=(\n")
	for _, c := range commands {
		fmt.Fprintf(&b, "        %s\n", zshQuote(c.name+":"+c.summary))
	}
	b.WriteString("    )\n    if (( CURRENT == 2 )); then\n        _describe command commands\n        return\n    fi\n" +
		"    local command=$words[2]\n    shift words\n    (( CURRENT-- ))\n    case $command in\n")
	for _, c := range commands {
		fmt.Fprintf(&b, "    %s)\n        _arguments", c.name)
		for _, s := range c.suggestions() {
			spec := s.word + "[" + zshAbout.Replace(s.about) + "]"
			if takesFile(s.value) {
				spec += ":file:_files"
			} else if s.value != "" {
				spec += ":" + strings.ToLower(s.value) + ": "
			}
			b.WriteString(" \\\n            " + zshQuote(spec))
		}
		if words := c.choices(); words != nil {
			b.WriteString(" \\\n            " + zshQuote("1:"+c.name+":("+strings.Join(words, " ")+")"))
		} else if takesFile(c.arguments) {
			b.WriteString(" \\\n            " + zshQuote("*:file:_files"))
		}
		b.WriteString(" ;;\n")
	}
	b.WriteString("    esac\n}\n\nif [ \"$funcstack[1]\" = _sealane ]; then\n    _sealane \"$@\"\nelse\n    compdef _sealane sealane\nfi\n")
	return b.String()
}

// zshAbout escapes what ends a description in _arguments.
var zshAbout = strings.NewReplacer(`\`, `\\`, `[`, `\[`, `]`, `\]`, `:`, `\:`)

func zshQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
