package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/sealane/sealane/cmd/sealane/internal/config"
	"github.com/sealane/sealane/session"
)

func runKeygen(p *process, in input) int {
	key, err := session.GenerateKey()
	if err != nil {
		return p.fail(err)
	}
	file := in.value("o")
	if file == "" {
		if _, err := p.stdout.Write(key.PEM()); err != nil {
			return p.fail(err)
		}
		fmt.Fprintln(p.stderr, key.Public())
		return exitOK
	}
	if err := writeKey(file, key); err != nil {
		return p.fail(err)
	}
	return p.print(key.Public())
}

// writeKey writes a new file that only its owner can read, and leaves none
// behind if it cannot be written whole.
func writeKey(file string, key *session.PrivateKey) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s exists and is never overwritten; name another file", file)
	}
	if err != nil {
		return err
	}
	_, err = f.Write(key.PEM())
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return errors.Join(err, os.Remove(file))
	}
	return nil
}

func runPubkey(p *process, in input) int {
	if len(in.arguments) != 1 {
		return p.usageError(in.command.name, errors.New("name one key file"))
	}
	key, err := config.ReadKey(in.arguments[0])
	if err != nil {
		return p.fail(err)
	}
	if in.set("identity") {
		return p.print(string(key.Public().Identity()))
	}
	return p.print(key.Public())
}
