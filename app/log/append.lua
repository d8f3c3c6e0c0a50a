-- Appends to streams, each by the one writer that it has. One call is one group commit.
-- KEYS  meta and events of each stream.
-- ARGV  of each stream: first seq, seq behind the last, entries, state, birth, ms to keep, key, claim, chat.
--       birth comes with the first entries; ms to keep with the first and the last; the Idempotency-Key with both,
--       and its claim where the end frees it; the key of its chat with the last.
-- Answers nothing where all went as their writers thought; else {place, seq that comes next here} for a writer to go on
-- from (0: the stream is unknown), or {place, -1}: others have ended the stream, and nothing was added.
-- A call that was given up may still be carried out behind later ones: then it finds its entries here, and changes nothing.
local running = {open = 1, alone = 2, live = 3}
local deviations = {}
for place = 1, #KEYS / 2 do
  local meta, events = KEYS[2 * place - 1], KEYS[2 * place]
  local first, behind, entries, state, birth, keep_ms, key, claim, chat = unpack(ARGV, 9 * place - 8, 9 * place)
  local was = redis.call('HMGET', meta, 'state', 'next')
  local at = tonumber(was[2] or 0)
  if was[1] == 'lost' or was[1] == 'abandoned' then
    deviations[#deviations + 1] = {place, -1}
  elseif state == 'cut' then
    if running[was[1]] then redis.call('HSET', meta, 'state', state) end
  elseif at < tonumber(first) then
    deviations[#deviations + 1] = {place, at}
  elseif at < tonumber(behind) then
    redis.call('XADD', events, behind .. '-0', 'e', entries)
    redis.call('HSET', meta, 'next', behind, 'state', state)
    if birth ~= '' then redis.call('HSET', meta, 'birth', birth) end
    if state == 'live' then redis.call('XTRIM', events, 'MAXLEN', 32) end
    if keep_ms ~= '' then
      redis.call('PEXPIRE', meta, keep_ms)
      redis.call('PEXPIRE', events, keep_ms)
      if chat ~= '' then redis.call('PEXPIRE', chat, keep_ms) end
      if claim ~= '' and redis.call('GET', key) == claim then redis.call('DEL', key)
      elseif key ~= '' then redis.call('PEXPIRE', key, keep_ms) end
    end
  elseif at == tonumber(behind) and running[was[1]] and running[was[1]] < (running[state] or 0) then
    redis.call('HSET', meta, 'state', state)
  end
end
if #deviations > 0 then return deviations end
return false
