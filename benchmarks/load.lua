-- The load of one benchmark cell: wrk runs this in each of its threads.
--
-- arguments: CASES.lua (returns a list of {request = {path, headers, body}, expected = answer without white space}) CONNECTIONS_PER_THREAD
--
-- wrk does not say which request an answer belongs to. So that every answer can still be checked against its own request, a
-- thread with one connection goes through all the cases in turn, and a thread with several always sends the same one; each
-- thread starts with a case of its own, and neighbours among the cases have different answers.

local threads = {}

function setup(thread)
  thread:set("number", #threads)
  table.insert(threads, thread)
end

function init(args)
  cases = dofile(args[1])
  rotates = tonumber(args[2]) == 1
  position = number % #cases + 1
  answers, wrong, sample = 0, 0, ""
  for _, case in ipairs(cases) do
    case.bytes = wrk.format("POST", case.path, case.headers, case.body)
  end
end

function request()
  if rotates then position = position % #cases + 1 end
  return cases[position].bytes
end

function response(status, _, body)
  answers = answers + 1
  local expected = cases[position].expected
  if status ~= 200 or (body ~= expected and body:gsub("%s", "") ~= expected) then
    wrong = wrong + 1
    if sample == "" then sample = status .. " " .. body:sub(1, 200) .. " instead of " .. expected:sub(1, 200) end
  end
end

function done(summary, latency)
  local total, bad, first = 0, 0, ""
  for _, thread in ipairs(threads) do
    total, bad = total + thread:get("answers"), bad + thread:get("wrong")
    if first == "" then first = thread:get("sample") end
  end
  local errors = summary.errors
  io.write(string.format("\nfigures %d %d %d %d %d %d\n", summary.duration, total, bad,
    errors.connect + errors.read + errors.write + errors.timeout, latency:percentile(50), latency:percentile(99)))
  io.write("sample " .. first:gsub("%s+", " ") .. "\n")
end
