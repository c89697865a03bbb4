package inject

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
)

// The exit codes of the sealane command.
const (
	exitOK    = 0
	exitError = 1
	exitUsage = 64
	exitData  = 78
)

const usage = `Usage: sealane inject -f FILE [--image IMAGE]

Adds a sealane sidecar to every pod and pod template of a manifest (YAML or
JSON, several documents, - for standard input) and writes the manifest to
standard output. Comments and everything else stay as they are. Doing it twice
is the same as doing it once.

Annotations of the pod template:
  sealane.dev/inject               enabled or disabled (default enabled)
  sealane.dev/config               ConfigMap with the key sealane.yaml (default sealane)
  sealane.dev/identity             Secret with the key node.key (default sealane)
  sealane.dev/skip-outbound-ports  destination ports that stay in plaintext
  sealane.dev/skip-inbound-ports   app ports that stay reachable in plaintext
  sealane.dev/skip-cidrs           destinations that stay in plaintext
  sealane.dev/image                sidecar image

Options:
  -f FILE          manifest to read, - for standard input
  --image IMAGE    sidecar image of pods that name none (default: that of this version)
`

// Main is the command sealane inject. image is the sidecar image that it
// injects unless a pod or --image names another. It gives the exit code.
func Main(image string, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("inject", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	file := flags.String("f", "", "")
	flags.StringVar(&image, "image", image, "")
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, usage)
		return exitOK
	case err == nil && *file == "":
		err = errors.New("no manifest named; say -f FILE")
	case err == nil && flags.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if err != nil {
		fmt.Fprintf(stderr, "sealane: %v; see \"sealane inject --help\"\n", err)
		return exitUsage
	}
	text, err := read(*file, stdin)
	if err != nil {
		fmt.Fprintf(stderr, "sealane inject: %v\n", err)
		return exitError
	}
	out, warnings, err := Manifest(text, Options{Image: image})
	if err != nil {
		for _, line := range strings.Split(err.Error(), "\n") {
			fmt.Fprintf(stderr, "sealane inject: %s: %s\n", *file, line)
		}
		return exitData
	}
	for _, w := range warnings {
		fmt.Fprintf(stderr, "sealane inject: %s: warning: %s\n", *file, w)
	}
	if _, err := io.WriteString(stdout, out); err != nil {
		fmt.Fprintf(stderr, "sealane inject: %v\n", err)
		return exitError
	}
	return exitOK
}

func read(file string, stdin io.Reader) (string, error) {
	if file == "-" {
		text, err := io.ReadAll(stdin)
		return string(text), err
	}
	text, err := os.ReadFile(file)
	return string(text), err
}

// Manifest injects into the text of a manifest: YAML documents, or one JSON
// object. All documents that cannot be injected are reported together.
func Manifest(text string, o Options) (string, []string, error) {
	var out strings.Builder
	var warnings []string
	var errs []error
	for _, doc := range split(text) {
		injected, w, err := document(doc.text, o)
		if err != nil {
			errs = append(errs, fmt.Errorf("document at line %d: %w", doc.line, err))
			continue
		}
		out.WriteString(injected)
		warnings = append(warnings, w...)
	}
	return out.String(), warnings, errors.Join(errs...)
}

func document(text string, o Options) (string, []string, error) {
	decode, patch := decodeYAML, patchYAML
	if strings.HasPrefix(strings.TrimSpace(text), "{") && json.Valid([]byte(text)) {
		decode, patch = decodeJSON, patchJSON
	}
	tree, err := decode(text)
	if err != nil {
		return "", nil, fmt.Errorf("cannot be read: %w", err)
	}
	obj, ok := tree.(map[string]any)
	if !ok { // comments alone
		return text, nil, nil
	}
	r, err := Object(obj, o)
	if err != nil || len(r.Patch) == 0 {
		return text, r.Warnings, err
	}
	text, err = patch(text, r.Patch)
	if err != nil {
		return "", nil, fmt.Errorf("%s: %w", Describe(obj), err)
	}
	return text, r.Warnings, nil
}

// doc is a piece of a YAML stream that starts at a line.
type doc struct {
	text string
	line int
}

// split cuts a YAML stream before each document start. The pieces together are
// the whole text.
func split(text string) []doc {
	docs := []doc{{line: 1}}
	line := 1
	for l := range strings.Lines(text) {
		rest, isMarker := strings.CutPrefix(l, "---")
		if isMarker && (strings.TrimLeft(rest, " \t\r\n") != rest || rest == "") && strings.TrimSpace(docs[len(docs)-1].text) != "" {
			docs = append(docs, doc{line: line})
		}
		docs[len(docs)-1].text += l
		line++
	}
	return docs
}

// decodeJSON gives the tree of a JSON object, with whole numbers as int64.
func decodeJSON(text string) (any, error) {
	dec := json.NewDecoder(strings.NewReader(text))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, err
	}
	return numbers(v), nil
}

func numbers(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k := range v {
			v[k] = numbers(v[k])
		}
	case []any:
		for i := range v {
			v[i] = numbers(v[i])
		}
	case json.Number:
		if i, err := v.Int64(); err == nil {
			return i
		}
		return v // as it was written
	}
	return v
}

// patchJSON applies the operations to a JSON object, which is written anew in
// the form that kubectl gives it.
func patchJSON(text string, ops []Op) (string, error) {
	tree, err := decodeJSON(text)
	if err != nil {
		return "", err
	}
	for _, op := range ops {
		if tree, err = apply(tree, op); err != nil {
			return "", err
		}
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "    ")
	err = enc.Encode(tree)
	return b.String(), err
}
