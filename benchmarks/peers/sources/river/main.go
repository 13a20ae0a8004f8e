// The River side of the benchmark, for what `river bench` does not measure: how fast jobs are
// inserted, and how long one takes from its due time to its completion. The drain is measured by
// `river bench` itself, built from the same module.
//
// It takes one JSON command a line on stdin and answers one JSON line on stdout.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"golang.org/x/sys/unix"
)

const (
	insertBatch = 5_000 // as in `river bench`
	maxWorkers  = 2_000 // as in `river bench`
	eventBuffer = 75_000
	paceTick    = time.Millisecond
	sendersMax  = 64 // inserts in flight at once
)

type noopArgs struct {
	DueNs int64 `json:"due_ns"`
}

func (noopArgs) Kind() string { return "noop" }

// noopWorker hands each job's latency in milliseconds to `ended`, -1 where it does not count.
type noopWorker struct {
	river.WorkerDefaults[noopArgs]
	ended chan<- float64
}

func (w *noopWorker) Work(_ context.Context, job *river.Job[noopArgs]) error {
	if job.Args.DueNs == 0 {
		w.ended <- -1
		return nil
	}
	w.ended <- float64(monotonicNs()-job.Args.DueNs) / 1e6
	return nil
}

type command struct {
	Do            string  `json:"do"`
	Jobs          int     `json:"jobs"`
	Rate          int     `json:"rate"`
	WarmupSeconds float64 `json:"warmup_seconds"`
	Seconds       float64 `json:"seconds"`
}

// monotonicNs reads CLOCK_MONOTONIC, one clock for all processes of a Linux machine.
func monotonicNs() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err)
	}
	return ts.Nano()
}

// newClient makes a client that works jobs where `ended` is given, as `river bench` sets it up.
func newClient(pool *pgxpool.Pool, ended chan<- float64) (*river.Client[pgx.Tx], error) {
	config := &river.Config{Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))}
	if ended != nil {
		config.Workers = river.NewWorkers()
		river.AddWorker(config.Workers, &noopWorker{ended: ended})
		config.FetchCooldown = 2 * time.Millisecond
		config.FetchPollInterval = 20 * time.Millisecond
		config.Queues = map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: maxWorkers}}
	}
	return river.NewClient(riverpgxv5.New(pool), config)
}

func add(ctx context.Context, pool *pgxpool.Pool, cmd command) (any, error) {
	client, err := newClient(pool, nil)
	if err != nil {
		return nil, err
	}
	started := time.Now()
	for added := 0; added < cmd.Jobs; added += insertBatch {
		batch := make([]river.InsertManyParams, min(insertBatch, cmd.Jobs-added))
		for i := range batch {
			batch[i].Args = noopArgs{}
		}
		if _, err := client.InsertManyFast(ctx, batch); err != nil {
			return nil, err
		}
	}
	return map[string]any{"seconds": time.Since(started).Seconds()}, nil
}

// pace runs a producer and a worker with pools of their own and answers each job's latency: from
// its due time until its function ran. River records the end later, up to 250 ms by design.
func pace(ctx context.Context, pool *pgxpool.Pool, url string, cmd command) (any, error) {
	workerPool, err := pgxpool.New(ctx, url)
	if err != nil {
		return nil, err
	}
	defer workerPool.Close()
	ended := make(chan float64, eventBuffer)
	worker, err := newClient(workerPool, ended)
	if err != nil {
		return nil, err
	}
	producer, err := newClient(pool, nil)
	if err != nil {
		return nil, err
	}
	warmup := int(float64(cmd.Rate) * cmd.WarmupSeconds)
	jobs := warmup + int(float64(cmd.Rate)*cmd.Seconds)
	if err := worker.Start(ctx); err != nil {
		return nil, err
	}
	latencies := make(chan []float64)
	go func() { latencies <- collect(ended, jobs) }()
	seconds, err := send(ctx, producer, cmd, warmup, jobs)
	if err != nil {
		return nil, err
	}
	samples := <-latencies
	answer := map[string]any{"sent": jobs, "seconds": seconds, "latencies_ms": samples}
	return answer, worker.Stop(ctx)
}

func collect(ended <-chan float64, jobs int) []float64 {
	samples := make([]float64, 0, jobs)
	for seen := 0; seen < jobs; seen++ {
		if sample := <-ended; sample >= 0 {
			samples = append(samples, sample)
		}
	}
	return samples
}

func send(ctx context.Context, producer *river.Client[pgx.Tx], cmd command, warmup, jobs int) (float64, error) {
	begin := monotonicNs()
	free := make(chan struct{}, sendersMax)
	var waiting sync.WaitGroup
	var once sync.Once
	var failed error
	for sent := 0; sent < jobs; sent++ {
		due := begin + int64(sent)*int64(time.Second)/int64(cmd.Rate)
		for monotonicNs() < due {
			time.Sleep(paceTick)
		}
		args := noopArgs{}
		if sent >= warmup {
			args.DueNs = due
		}
		free <- struct{}{}
		waiting.Add(1)
		go func() {
			defer func() { <-free; waiting.Done() }()
			if _, err := producer.Insert(ctx, args, nil); err != nil {
				once.Do(func() { failed = err })
			}
		}()
	}
	waiting.Wait()
	return float64(monotonicNs()-begin) / 1e9, failed
}

func run(ctx context.Context, url string) error {
	pool, err := pgxpool.New(ctx, url)
	if err != nil {
		return err
	}
	defer pool.Close()
	out := json.NewEncoder(os.Stdout)
	if err := out.Encode(map[string]bool{"ready": true}); err != nil {
		return err
	}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var cmd command
		if err := json.Unmarshal(lines.Bytes(), &cmd); err != nil {
			return err
		}
		var answer any
		switch cmd.Do {
		case "add":
			answer, err = add(ctx, pool, cmd)
		case "clear":
			_, err = pool.Exec(ctx, "truncate river_job")
			answer = map[string]any{}
		case "pace":
			answer, err = pace(ctx, pool, url, cmd)
		default:
			err = fmt.Errorf("unknown command %q", cmd.Do)
		}
		if err != nil {
			return err
		}
		if err := out.Encode(answer); err != nil {
			return err
		}
	}
	return lines.Err()
}

func main() {
	if err := run(context.Background(), os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
