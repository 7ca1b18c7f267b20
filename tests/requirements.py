"""What the project promises, and which tests hold it to each promise.

A test names promises with `@pytest.mark.promise("ID", ...)`; on a module, `pytestmark = pytest.mark.promise(...)` is
for all its tests. `python -m tests.requirements` lists promises without a test, and names that are no promise.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

PROMISES = {
    # Installation and command line
    "INSTALL-1": "Without a compiled kernel library the engine computes through PyTorch and says so.",
    "CLI-1": "`mxext` has the commands serve, hub, chat, complete, lora, parse, fit, bench, server and collect-env.",
    "CLI-2": "Help is printed and configuration is resolved without importing torch.",
    "CLI-3": "`python -m vllm_mxext.entrypoints.openai.api_server` is the same server as `mxext serve`.",
    "DOCS-1": "Every example of the README runs as printed.",
    "DOCS-2": "README.md and README_CH.md stay in step.",
    "DOCS-3": "The figures in the README are those of a benchmark's result in the repository.",
    "DOCS-4": "Every LoRA command of the contract runs as printed.",
    "DOCS-5": "Every command of the server registry in the contract runs as printed.",
    "DOCS-6": "Every example of the client's page runs as printed; its tables name all errors, variables and figures.",
    "CLI-4": "`mxext chat` keeps a history, takes commands, and stops only the answer on Ctrl-C.",
    "CLI-6": "`mxext completion` completes commands, flags and names of servers in bash, zsh and fish.",
    "CLI-5": "`mxext fit` prints memory plan and kernels without loading weights.",
    # Configuration and logging
    "CONF-1": "Command line beats environment beats file beats default, and every value's origin is shown.",
    "CONF-2": "Flags accept underscores for dashes, in files too.",
    "CONF-3": "An unknown name or wrong value is refused in one sentence that names it, with a suggestion.",
    "CONF-4": "A vLLM flag that is not built is refused with what to do instead, never dropped silently.",
    "LOG-1": "Logging obeys VLLM_MXEXT_CONFIGURE_LOGGING, _LOGGING_CONFIG_PATH, _LOG_LEVEL and _JSONL_LOGGING.",
    # Built-in model
    "MODEL-1": "Without a model the built-in one is served.",
    "MODEL-2": "The built-in model solves the tasks its card claims.",
    "MODEL-3": "The LoRA adapters that ship change the built-in model's answers.",
    "MODEL-4": "One seed makes the same corpus and tokenizer again.",
    "MODEL-5": "The built-in model has at most 8 MB of bfloat16 weights.",
    # Scheduler and KV cache
    "CORE-1": "Blocks have one owner, correct reference counts and return to the pool, after any history.",
    "CORE-2": "A step never exceeds the token budget, max_num_seqs or max_model_len.",
    "CORE-3": "Long prompts are computed in chunks beside running requests.",
    "CORE-4": "Prefixes are shared by block hash, kept apart by adapter generation and cache salt.",
    "CORE-5": "A full cache preempts by recompute, and every request still finishes.",
    "CORE-6": "The waiting queue is first come first served or by priority.",
    "CORE-7": "Samples of one request share their prompt's blocks.",
    "CORE-8": "Abort at any moment frees everything the request held.",
    "CORE-9": "No request starves: the first in order always goes on; under fcfs one that returns gains a token.",
    # Worker, models, kernels
    "MEM-1": "The memory plan is shown before loading and refuses what cannot fit with a suggestion that works.",
    "GOLD-1": "Llama, Qwen2, Qwen3 and Mistral give transformers' greedy tokens in float32.",
    "GOLD-2": "The answer does not depend on chunking, prefix hits, preemption or neighbours.",
    "GOLD-3": "Logits are close to transformers' in bfloat16, float16 and float32.",
    "LOAD-1": "Checkpoints load from single and sharded safetensors, with tied embeddings and rope scaling variants.",
    "LOAD-2": "`--dtype auto` computes in the checkpoint's own type.",
    "LOAD-3": "A later start takes packed weights from a prepared file, and gives the tokens of the first.",
    "LOAD-4": "A prepared file that is stale, cut off, damaged or foreign is dropped, and the checkpoint is read.",
    "LOAD-5": "Prepared files keep to a size limit, can be switched off, and trouble with them never fails a start.",
    "KERN-1": "Every compiled kernel agrees with its PyTorch reference.",
    "KERN-2": "A compiled kernel's row does not depend on its neighbours or on how the work was cut.",
    "INT8-1": "`--quantization int8` halves the weights' memory; every kernel path gives the same, close logits.",
    "KV8-1": "`--kv-cache-dtype int8` halves the KV cache's memory; every kernel path gives the same, close logits.",
    "INT4-1": "GPTQ, AWQ and compressed-tensors int4 checkpoints run as int4, close to the weights they stand for.",
    "INT4-2": "A quantised checkpoint that is not supported, or not what --quantization says, is refused clearly.",
    # Sampling
    "SAMP-1": "temperature, top-k, top-p, min-p and penalties choose from the distribution they define.",
    "SAMP-2": "Sampling noise is a function of seed and position: tokens do not depend on the batch.",
    "SAMP-3": "Stop strings, stop ids, max_tokens, min_tokens and ignore_eos end a request where they say.",
    "SAMP-4": "Log probabilities are those of the model before temperature and filters.",
    "SAMP-5": "Sampling parameters out of range are refused with the field's name.",
    "SAMP-6": "The samplers of llama.cpp (typical, top-n-sigma, XTC, DRY, Mirostat, dynamic temperature) do as there.",
    "SAMP-7": "Bias, allowed ids and bad words decide what can be sampled; what no token can satisfy fails alone.",
    "SAMP-8": "Log probabilities of prompts are those of the model, in bounded memory, however the prompt was cut.",
    "SAMP-9": "best_of makes more samples than n and returns those with the highest cumulative log probability.",
    "SAMP-10": "Plug-in logits processors change the logits of their requests; what they refuse is a 400.",
    # Chat
    "CHAT-1": "Conversations render to the text and tokens of transformers' `apply_chat_template`.",
    "CHAT-2": "Templates are chosen, fed and limited as documented; content comes in the form that they ask for.",
    "TOOL-1": "Tools are called where the model chooses, must, or is told which; the API answers as OpenAI's.",
    "TOOL-2": "A streamed answer with tool calls and reasoning joins to the whole one.",
    "TOOL-3": "Reasoning is told from the answer, comes and is taken under both names, and is counted.",
    "TOOL-4": "Forced calls and strict tools fit their schemas in every format; reasoning before them is free.",
    "TOOL-5": "Reasoning that has spent its budget is closed, whatever else is on; one that cannot be kept is a 400.",
    # Structured output
    "STRUCT-1": "JSON schema, regex, choice, grammar and structural tag let through what fits, and nothing else.",
    "STRUCT-2": "Every JSON Schema keyword is enforced, an annotation, or refused with the reason; none is ignored.",
    "STRUCT-3": "A grammar that is absurd ends as a 400 of its own request, however it ends the attempt to compile it.",
    "STRUCT-4": "Structured output is the same after preemption and after a restart of the engine.",
    "STRUCT-5": "Every spelling of a constraint is honoured, unknown ones are refused, and only one may be given.",
    # Beam search and deadlines
    "BEAM-1": "Beam search finds the hypotheses of transformers' `generate(num_beams=...)`, in float32.",
    "BEAM-2": "A beam search holds a place per beam, can be left and aborted at any moment, and survives a restart.",
    "TIME-1": "A request that runs out of time ends with what it has, or with an error if that is nothing.",
    # Speculation and determinism
    "SPEC-1": "Tokens and log probabilities with draft tokens are those without, whatever else is asked for.",
    "SPEC-2": "Nobody is preempted or held up for draft tokens, and they never exceed a limit.",
    "SPEC-3": "Drafting stops for a request that does not gain by it, and in batches whose rows cost too much.",
    "SPEC-4": "Prompt lookup drafts what followed the last time the latest tokens came up.",
    "SPEC-5": "A draft model of the same vocabulary drafts with the request's own noise; another one is refused.",
    "SPEC-6": "Drafts and accepted tokens are counted under vLLM's names.",
    "DET-1": "With --deterministic logits are the same bits alone and in any batch, on every kernel path.",
    # Adapters
    "LORA-1": "Requests with different adapters and with none share a batch and give the tokens of merged weights.",
    "LORA-2": "DoRA, biases, own embeddings and heads change what they change in PEFT.",
    "LORA-3": "A request's scale multiplies everything that its adapter adds.",
    "LORA-4": "Unloading gives memory back; files that have changed are never taken for what was loaded.",
    "LORA-5": "Reloaded under its name, an adapter never meets old KV blocks; open requests keep the old weights.",
    "LORA-6": "More adapters than there are places take turns; nobody starves, and it can be seen where each is.",
    # Adapters: their files
    "LORA-FORMAT-1": "Adapters of PEFT, NeMo, TensorRT-LLM and llama.cpp are read as these programs mean them.",
    "LORA-FORMAT-2": "An adapter that does not fit the model or a limit is refused in one sentence, weights unread.",
    "LORA-FORMAT-3": "Broken and hostile adapter files are refused: no crash, nothing of theirs runs, little memory.",
    "LORA-FORMAT-4": "Adapters are written for PEFT and TensorRT-LLM with every stored bit.",
    # Adapters: the front of the engine
    "LORA-10": "Flags and variables about adapters mean what they mean in vLLM and in the documentation.",
    "LORA-11": "A name means one set of weights: a changed adapter gets a new generation, and no id is used twice.",
    "LORA-12": "A request keeps the weights that its name meant when it was accepted, until it ends.",
    "LORA-13": "A new engine process knows every adapter that is served or still in use before it gets a request.",
    "LORA-14": "`LoRARequest` works offline and with the asynchronous engine, per call and per prompt, as in vLLM.",
    # Engine
    "ENG-1": "`LLM` generates and chats offline, for single prompts and lists, as a context manager.",
    "ENG-2": "`AsyncLLMEngine` and `LLMEngine` serve, step, pause and abort requests.",
    "ENG-3": "An idle engine process uses no CPU.",
    "ENG-4": "A killed engine process is replaced and every open stream continues with the same tokens.",
    "ENG-5": "A request that kills the engine again and again alone gets an error.",
    "ENG-6": "When start-up fails, the root cause is the last line and the exit code is not zero.",
    "ENG-7": "One request's failure harms no other request.",
    # HTTP API
    "API-1": "/v1/chat/completions and /v1/completions answer the official OpenAI client.",
    "API-2": "/v1/completions takes a string, a list of strings, token ids and lists of token ids.",
    "API-3": "/v1/models, /v1/models/{id}, /tokenize, /detokenize, /version and /docs answer.",
    "API-4": "Every kind of bad input gets an OpenAI error object with message, type, param and code.",
    "API-5": "API keys guard every route except health.",
    "API-6": "Request ids are echoed.",
    "API-7": "Request bodies are limited in size.",
    "API-8": "Known fields that this version does not offer are refused, not ignored.",
    "API-9": "No request that the OpenAPI description allows brings a server error or an undescribed status.",
    "API-10": "Malformed and absurd requests get 4xx, disturb no stream and leave nothing behind.",
    "API-11": "Prompts can be rendered to text and token ids without generating anything.",
    "API-12": "A server that is told to puts the times of a request into its response, as vLLM does.",
    "API-13": "POST /generate and GET /model answer in the documented form, with the guards of every other route.",
    "LORA-API-1": "Adapters are loaded, named in requests, scaled, listed and unloaded over HTTP, in vLLM's words.",
    "LORA-API-2": "Clients load and unload adapters only where the server allows it; the refusal names the switch.",
    "LORA-API-3": "A watched folder's adapters come, reload and go with their files; broken ones harm no other.",
    "LORA-API-4": "Figures per adapter, vllm:lora_requests_info among them, go when the adapter does.",
    "LORA-FILE-1": "Every key of the LoRA configuration file is honoured; an unknown one is refused with a suggestion.",
    "LORA-CLI-1": "`mxext lora` and `tools.lora_manager` load, list, test and unload, and exit with a code per cause.",
    "STREAM-1": "Streams carry real tokens and end with a finish reason, usage when asked for, and [DONE].",
    "STREAM-2": "Deltas never split a character and never show a part of a stop string.",
    "STREAM-3": "Silent streams carry keep-alive comments.",
    "STREAM-4": "A client that leaves stops its work within one step, in every phase.",
    # Reading the output
    "PARSE-1": "Reasoning and tool calls of every published format are told from the answer.",
    "PARSE-2": "However the text is cut, the joined events are the same; nothing is lost or doubled.",
    "PARSE-3": "No text makes a parser fail; what is no call stays content, and the work grows linearly.",
    "PARSE-4": "Parsers go by name, by the chat template's fingerprint or come from a plug-in file.",
    "PARSE-5": "`mxext parse` runs the parsers on a file.",
    # Pains of other servers; a test of each has its number in its name
    "PAIN-1": "Pain 1: a loaded model serves at once, and every phase of start-up is timed in log and /health.",
    "PAIN-2": "Pain 2: a bad or absurd grammar is a 400 of its own request, and nobody waits for it.",
    "PAIN-3": "Pain 3: what goes wrong in one request, a plug-in included, fails that request alone.",
    "PAIN-4": "Pain 4: streamed tool calls lose and double nothing, however the text is cut.",
    "PAIN-5": "Pain 5: reasoning does not leak into the answer, and comes under both names.",
    "PAIN-6": "Pain 6: BOS is neither doubled nor missing.",
    "PAIN-7": "Pain 7: a reloaded adapter changes the answers at once, and memory comes back when it goes.",
    "PAIN-13": "Pain 13: log probabilities of a long prompt take a bounded amount of memory.",
    "PAIN-17": "Pain 17: tokens do not depend on the batch, and a seed means the same everywhere.",
    "PAIN-21": "Pain 21: responses fit the types of the official OpenAI package.",
    "PAIN-22": "Pain 22: every old spelling of a constraint is honoured, and unknown ones are refused.",
    # MX Hub
    "HUB-MANIFEST-1": "A wrong manifest is refused with file:line, a sentence per complaint, and a suggestion.",
    "HUB-MANIFEST-2": "No file makes the manifest reader fail in another way, run code, or take unbounded memory.",
    "HUB-MANIFEST-3": "Manifests of NVIDIA NIM and plain lists are read; what is left out is said.",
    "HUB-MANIFEST-4": "Manifests are looked for in their places in order; other models come from the packaged one.",
    "HUB-MANIFEST-5": "A model that no manifest has is described from config.json and headers; no weights are read.",
    "HUB-SOURCE-1": "Every built-in scheme gives a model's files byte for byte, by its published protocol.",
    "HUB-SOURCE-2": "Credentials reach no host but their own, and never come from an address.",
    "HUB-SOURCE-3": "Bytes that are cut off, shifted, too few, or a web page instead are noticed.",
    "HUB-SOURCE-4": "Other packages add schemes of model addresses.",
    "HUB-OFFLINE-1": "Offline not a single socket is opened and no name looked up, whatever the scheme.",
    "HUB-SECRET-1": "Tokens and signed queries are cut out of messages and of what the HTTP libraries log.",
    # Operations
    "OPS-1": "While loading, everything but live and metrics answers 503 with phase and percentage.",
    "OPS-2": "/health, /v1/health/live and /v1/health/ready tell the engine's state.",
    "OPS-3": "/metrics has vLLM's names.",
    "OPS-4": "A full queue answers 429 with Retry-After.",
    "OPS-5": "SIGTERM turns ready to 503, lets open streams finish and exits with 0; a second signal aborts.",
    # MX Hub
    "HUB-HW-1": "This machine is inspected without torch or a GPU; what cannot be found out becomes a note.",
    "HUB-HW-2": "Devices of NVIDIA, AMD, MetaX and Apple are found, as far as the vendors' variables let them be seen.",
    "HUB-HW-3": "A YAML file stands in for a machine; a wrong one is refused by file and key.",
    "HUB-EST-1": "Parameters and caches of decoders with GQA, MLA, windows and experts are counted from config.json.",
    "HUB-EST-2": "The native engine's memory is estimated by its own plan, within 10% of what a whole server holds.",
    "HUB-STATE-1": "Each profile is runnable, reduced, busy, insufficient or incompatible, with reasons in numbers.",
    "HUB-STATE-2": "Profiles are judged with the flags that the user has set.",
    "HUB-SEL-1": "Of the profiles that can run, rules in a fixed order choose one.",
    "HUB-SEL-2": "A profile can be asked for by name, alias or id, and others be left out by their number of devices.",
    "HUB-SEL-3": "When nothing can run, every reason is said, and what would run instead.",
    "HUB-SEL-4": "Every rule and what became of every profile can be read, as text, table and JSON.",
    "HUB-SEL-5": "Choices depend neither on order nor on chance; more memory never makes a state worse.",
    "HUB-SEL-6": "The choices for sixteen machines and six models are as they were reviewed by hand.",
    "HUB-TRANSFER-1": "A download that dies anywhere resumes to the same digest with all but one chunk per connection.",
    "HUB-TRANSFER-2": "Servers that flip, cut, ignore ranges, lie or change files bring no wrong byte into the store.",
    "HUB-TRANSFER-3": "Several that want one file fetch it once, or without working locks each for itself, unharmed.",
    "HUB-TRANSFER-4": "Full, small and read-only disks are told in one sentence; nothing is half-published or lost.",
    "HUB-TRANSFER-5": "Repair fetches only the chunks that are damaged; readers of the old file are not disturbed.",
    "HUB-TRANSFER-6": "Downloads keep to their limit, tell rate and time left, and can be stopped at once.",
    "HUB-STORE-1": "A published snapshot is found with all its files, with links, hard links or copies.",
    "HUB-STORE-2": "Publishing again, also by several processes at once, changes nothing; old versions stay whole.",
    "HUB-STORE-3": "Trouble with the store's folder is said with its cause and a remedy, and nothing is half there.",
    "HUB-CACHE-1": "A whole model in the cache of Hugging Face is used where it lies; one that is not whole is not.",
    "HUB-CACHE-2": "Cached files are taken by digest only if their content has it, and are never written.",
    "HUB-LOCK-1": "model.lock is written the same every time and read strictly, with file and line in complaints.",
    "HUB-LOCK-2": "With --frozen nothing passes but what model.lock pins.",
    "HUB-GC-1": "gc removes only what is old and neither current, kept, pinned nor named; a dry run says the same.",
    "HUB-GC-2": "gc keeps out of the way of those who add files; without working locks it leaves what is young.",
    "HUB-RM-1": "rm removes a model with the files that only it has; what is pinned or served only by force.",
    "HUB-VERIFY-1": "verify finds missing, cut-off and damaged files, and which chunks are bad.",
    "HUB-VERIFY-2": "repair asks sources only for what is damaged.",
    "HUB-BUNDLE-1": "Exported models arrive on another machine as they were; equal models make equal bundles.",
    "HUB-BUNDLE-2": "Nothing of a bundle that is cut off, damaged or forged is published.",
    "HUB-SIGN-1": "A model's signature is verified if asked for; one that is missing or bad is warned of or refused.",
    "HUB-SAFE-1": "Paths that leave the model's folder, or that some system reads otherwise, are refused.",
    "HUB-CONF-1": "A profile's flags lie below command line, environment and file, and above defaults, with origins.",
    "HUB-CONF-2": "Every MIM_ variable sets its flag, strictly; one that nothing reads is told with the nearest name.",
    "HUB-PULL-2": "A pull takes the first source that works and asks for what is new; a start takes what is stored.",
    "HUB-PULL-3": "Bytes that manifest or source do not vouch for are never published.",
    "HUB-SERVER-1": "While the model is being downloaded, the port answers, and health says phase and percentage.",
    "HUB-SERVER-2": "No connection is refused, reset or forgotten when the port passes to the server with the model.",
    "HUB-SERVER-3": "A server tells of its model: license, manifest, profiles with reasons, download and store.",
    "HUB-START-1": "A server with only MIM_MODEL_NAME opens its port at once, downloads, answers; then starts offline.",
    "HUB-START-3": "Models, tokenizers, draft models and adapters are named by ORG/NAME or URI wherever a folder is.",
    "HUB-START-4": "Manifest, profile and flags make the start; what cannot run is refused before any download.",
    "HUB-START-2": "A model that nobody has ends the start with one sentence.",
    "HUB-PULL-1": "Of a source's files those are downloaded that the format, the patterns or the pins name.",
    "HUB-SAFE-3": "A profile sets how a model runs, never who is let in or which code is loaded.",
    "HUB-CLI-1": "`mxext hub` chooses, explains, downloads, verifies, repairs, pins, moves and writes manifests.",
    "HUB-CLI-2": "Each command of `mxext hub` prints one JSON object if asked, and exits with a code per cause.",
    "HUB-CLI-3": "`mxext hub doctor` tells what keeps models from being downloaded or started, with remedies.",
    "HUB-DOCS-1": "docs/hub.md names all keys, states, rules and variables, and its commands run as printed.",
    "HUB-SAFE-2": "Pickles and programs are refused unless allowed, by name and by content.",
    # Client
    "CLIENT-1": "Only faults that may pass are tried again, after random waits that obey every form of Retry-After.",
    "CLIENT-2": "After the first token nothing is tried again: the error keeps the text that came.",
    "CLIENT-3": "Limits for connecting, first token, idleness and the whole call end a request, and name themselves.",
    "CLIENT-4": "A hedge is sent before the first token only; the loser is cancelled.",
    "CLIENT-5": "Retries of all calls together stay within a budget.",
    "CLIENT-6": "Streams are read as the standard says, wherever they are cut; a broken one is never a whole one.",
    "CLIENT-7": "The synchronous client works in notebooks, threads and children, and ends without a trace.",
    "CLIENT-8": "The asynchronous client has the namespaces of OpenAI's, with typed errors and several servers.",
    "CLIENT-9": "Every call ends with an answer or a typed error, and leaves nothing behind, whatever servers do.",
    "CLIENT-10": "VllmClient and VllmMxextClient have the documented names, environment variables and results.",
    "CLIENT-11": "Handlers, batches and optimization do what they report, and report what they cannot do.",
    "CLIENT-12": "A breaker opens by failures in a row, failure rate or slow first tokens; a few probes close it.",
    "CLIENT-13": "Calls at once per endpoint shrink when it refuses, grow when it answers; its pauses are kept.",
    "CLIENT-14": "Waiting calls go by priority and arrival; none starves, and a cancelled one holds and loses no turn.",
    "CLIENT-15": "Calls go to the least loaded or their preferred endpoint; a lone broken one is probed, not given up.",
    "CLIENT-16": "Batches of equal parameters go by size or time; errors are each item's own; nobody waits for ever.",
    "CLIENT-17": "The client's figures take bounded memory; percentiles are within one percent.",
    "CLIENT-18": "The unified test runner writes the documented files and ends with an honest code.",
    # Performance tester
    "PERF-1": "The documented configuration file and flags are read, and unknown names are refused with a suggestion.",
    "PERF-2": "The result of a run is plain data that JSON carries both ways.",
    "PERF-3": "Latencies count from the schedule where there is one; TPOT is over one token less, or absent; gaps of "
    "chunks and of tokens are apart.",
    "PERF-4": "Figures follow the definitions of vLLM or guidellm on request.",
    "PERF-5": "Measuring begins in the midst of the load, and a steady window is reported beside the whole.",
    "PERF-6": "Failures are counted by kind and never lose a run.",
    "PERF-7": "Goodput counts the answers that keep every limit.",
    "PERF-8": "A comparison of two runs comes with its uncertainty.",
    "PERF-9": "Arrivals follow the rate, burstiness and ramp that were asked for, the same for the same seed.",
    "PERF-10": "Output tokens come from usage, else from a tokenizer, never from the number of chunks.",
    "PERF-11": "Synthetic prompts have exactly the number of tokens asked for, and share exactly what they should.",
    "PERF-12": "Measured times are those of the server's own clock, and a client that cannot keep up says so.",
    "PERF-13": "An interrupted run returns what was measured until then.",
    "PERF-14": "The knee of a sweep is where the server is full, also with few requests, or is said not to be reached.",
    "PERF-20": "Every documented command line of the performance tester runs as printed.",
    "PERF-21": "The console has the documented headings in English and Chinese, and an absent figure is n/a, never 0.",
    "PERF-22": "The log has the documented name, sections and keys, replaces nothing, and falls back to a folder that "
    "can be written, with a message.",
    "PERF-23": "Prometheus text, CSV and JSON hold the figures of the report, and nothing for what is absent.",
    "PERF-24": "The HTML report is one file that loads nothing and runs no script.",
    "PERF-25": "A difference is claimed only if its interval excludes none, and never of an invalid run; what cannot "
    "be compared is no success.",
    "PERF-26": "A regression, a missed objective and an invalid measurement have exit codes of their own.",
    "PERF-27": "Earlier runs are kept, and shown with sparklines.",
    # Server registry
    "REGISTRY-1": "The registry's file is replaced as a whole under a lock; a broken one is never overwritten.",
    "REGISTRY-2": "A server is found, drained and killed by its identity; a reused process id is never touched.",
    "REGISTRY-3": "Keys and tokens are neither kept by the registry nor shown.",
    "REGISTRY-4": "A failed start shows the end of the log and what to do; a taken port names who has it.",
    "REGISTRY-5": "Logs of servers are rotated, so that they stay small, and can be followed.",
    "REGISTRY-6": "Addresses of others are asked; backends that are not started here say what to do instead.",
    "REGISTRY-7": "The example scripts measure real streams, check what they get, and exit with honest codes.",
    "REGISTRY-8": "Commands typed at the same time, or broken off, leave at most one server per name, all known.",
}
"""Id -> sentence."""

MARKER = "promise"
TESTS = Path(__file__).parent


def references(folder: Path = TESTS) -> dict[str, list[str]]:
    """Returns promise id -> the tests that name it, as `file:function`."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(folder.rglob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        for name, marks in _marked(tree):
            for promise in _promises(marks):
                found[promise].append(f"{path.relative_to(folder)}:{name}")
    return dict(found)


def _marked(tree: ast.Module) -> Iterator[tuple[str, list[ast.expr]]]:
    """Yields every test with its decorators, and the module with its `pytestmark`."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            if node.name.startswith(("test", "Test")):
                yield node.name, node.decorator_list
        elif isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "pytestmark" for target in node.targets
        ):
            yield "pytestmark", [node.value]


def _promises(marks: list[ast.expr]) -> Iterator[str]:
    for node in (inner for mark in marks for inner in ast.walk(mark)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == MARKER:
            yield from (argument.value for argument in node.args if isinstance(argument, ast.Constant))


def main() -> int:
    """Prints what is missing; returns 1 if anything is."""
    named = references()
    uncovered = [f"{promise}: {PROMISES[promise]}" for promise in PROMISES if promise not in named]
    unknown = [f"{promise}: {', '.join(tests)}" for promise, tests in named.items() if promise not in PROMISES]
    sys.stdout.write(f"{len(PROMISES)} promises, {len(uncovered)} without a test, {len(unknown)} unknown names\n")
    sys.stdout.write("".join(f"no test   {line}\n" for line in uncovered))
    sys.stdout.write("".join(f"unknown   {line}\n" for line in unknown))
    return 1 if uncovered or unknown else 0


if __name__ == "__main__":
    sys.exit(main())
