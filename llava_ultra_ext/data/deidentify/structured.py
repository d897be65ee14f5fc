"""Identifiers with a form of their own: numbers, phones, addresses, beds, institutions, ages over 89.

Strict by class rather than by check digit: a mistyped ID number still identifies, so every run of seven or more digits
goes, whatever it is. No ultrasound measurement has one.

The order matters, what is specific goes first: e-mail and URL (they hold digits), ID numbers (they hold dates),
labelled numbers (住院号: any value), phones, bare long numbers except dates, institutions and addresses (they hold
numbers), beds, ages.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_PROVINCES = (
    "北京|天津|上海|重庆|河北|山西|辽宁|吉林|黑龙江|江苏|浙江|安徽|福建|江西|山东|河南|湖北|湖南|广东|海南|四川|贵州|云南|陕西|甘肃|"
    "青海|台湾|内蒙古|广西|西藏|宁夏|新疆|香港|澳门"
)
_HAN = r"[\u4e00-\u9fff]"
_STOP = (
    r"(?!者|患者|病人|孕妇|回声|来自|家住|现住|居住|建议|上级|下级|当地|其他|就近|联系|地址|住址|籍贯|户籍|所在|工作|单位|目前|昨日|今日|"
    r"[到至往赴在于由经去转从来因该某另他曾后前我本住为是见及系])"
)
_PLACE = rf"(?:{_STOP}{_HAN})"
_NUMBER = r"[A-Za-z]?[\d一二三四五六七八九十百]{1,5}[A-Za-z]?"
_HOUSE = rf"(?:[\s-]?(?:{_NUMBER}|[A-Za-z])(?:号楼|号院|号|弄|栋|幢|座|楼|层|单元|室|门|户|组|队|社)(?:附{_NUMBER}号)?)"
_HOUSES = rf"(?:{_HOUSE}+(?:[-\s]?\d{{2,5}}(?!\d))?)?(?:[\s,，]?(?:邮编)?[:：]?\d{{6}}(?!\d))?"
_AREA = r"(?:特别行政区|自治区|自治州|自治县|地区|林区|新区|开发区|街道|社区|省|市|州|盟|区|县|旗|镇|乡|村|屯|庄)"
_ROAD = r"(?:大道|大街|胡同|路|街|巷|弄)"
_HOME = r"(?:小区|花园|公寓|家园|新村|社区|大厦|宿舍|家属院|苑|里)"
_CLINICAL_AREA = r"(?<!回声区)(?<!暗区)(?<!移行区)(?<!外周区)(?<!中央区)(?<!乳晕区)(?<!腺区)(?<!髓区)"

_TOWN = rf"{_PLACE}{{1,7}}?(?:市|县|自治州|自治县|旗|盟)"
_ADDRESSES = [
    r"(?:家庭住址|通讯地址|联系地址|现住址|住址|地址|户籍所在地|户籍地|户籍|户口所在地|籍贯|出生地|居住地|工作单位|家住|现居住?于?|居住[于在]|现住)"
    r"\s*[:：是为]?\s*(?P<value>(?![址住于在为是])[^\s,，。;；、\[\]()（）][^,，。;；\n\[\]()（）]{1,40})",
    rf"(?:{_PROVINCES})(?:省|市|壮族自治区|回族自治区|维吾尔自治区|自治区|特别行政区)?"
    rf"(?:{_PLACE}{{1,8}}?(?:{_AREA}{_CLINICAL_AREA}|{_ROAD}|{_HOME}))+{_HOUSES}",
    rf"(?:{_PROVINCES})(?:省|市|自治区)(?![立级属])",
    rf"{_TOWN}(?:{_PLACE}{{1,7}}?(?:{_AREA}{_CLINICAL_AREA}|{_ROAD}|{_HOME}))+{_HOUSES}",
    rf"(?:{_PLACE}{{1,5}}(?:区|镇|乡|街道){_CLINICAL_AREA})?{_PLACE}{{1,6}}{_ROAD}(?:{_PLACE}{{1,8}}{_HOME})?{_HOUSE}+"
    r"(?:[-\s]?\d{2,5}(?!\d))?",
    rf"{_PLACE}{{1,6}}(?:镇|乡)(?:{_PLACE}{{1,6}}(?:村|庄|屯|街)){_HOUSES}",
    rf"{_PLACE}{{1,6}}(?:村|庄|屯|社区){_HOUSE}+",
    rf"{_PLACE}{{2,8}}{_HOME}{_HOUSE}+(?:[-\s]?\d{{2,5}}(?!\d))?",
    # What is left of an address of which a rule above took the beginning.
    rf"\[地址\](?:{_HAN}{{0,6}}?(?:{_AREA}|{_ROAD}|{_HOME}))*{_HAN}{{0,6}}?{_HOUSE}+(?:[-\s]?\d{{2,5}}(?!\d))?",
    rf"\[地址\]{_HAN}{{1,4}}?{_ROAD}(?=[\s,，。;；]|$)",
    r"\[地址\][\s,，]*(?:邮编)?[:：]?\d{6}(?!\d)",
    r"(?:\[地址\]\s*){2,}",
    r"(?<![\dA-Za-z])\d{1,3}(?:栋|幢|号楼)\s*(?:\d{1,2}单元)?\s*\d{2,4}(?:室|号)?",
]
_INSTITUTION = re.compile(
    rf"(?:{_PLACE}|[A-Za-z\d]){{2,18}}(?:医院|卫生院|卫生所|卫生服务中心|卫生服务站|保健院|诊所|有限公司|公司|学校|工厂)"
    rf"(?:{_HAN}{{1,4}}院区)?"
)
_GENERIC = re.compile(
    r"(?:综合|专科|基层|私立|公立|三甲|二甲|三级|教学|大|小|市|县|省|肿瘤|儿童|妇产|妇幼|眼科|口腔|一般|各级|多家|专业)+(?:医院|保健院)"
)

_NUMBER_LABEL = (
    r"住院(?:号码|编号|号|ID)|门诊(?:号码|编号|号|ID)|病案(?:编号|号)|病历(?:编号|号)|登记(?:编号|号)|检查(?:编号|单号|号)|超声(?:编号|号)|影像(?:编号|号)|"
    r"就诊(?:卡号|编号|号)|诊疗卡号|急诊号|体检(?:编号|号)|申请(?:单号|单|号)|条码号?|病理(?:编号|号)|标本号|医嘱号|流水号|挂号|预约号|"
    r"患者编号|病人编号|患者ID|病人ID|患者号|病人号|医保(?:卡号|编号|号)|社保(?:卡号|号)|卡号|证件号码?|证号|公民身份号码|身份证(?:号码|号)?|护照(?:号码|号)?|"
    r"军官证(?:号码|号)?|档案号|编号|工号|(?<![A-Za-z])ID号|(?<![A-Za-z])(?:ID|No|MRN|PID|Acc(?:ession)?(?:\s?No)?)(?=\s*[:：.#])"
)
_VALUE = r"[A-Za-z0-9０-９](?:[A-Za-z0-9０-９_/\-]*[A-Za-z0-9０-９])?"
_SEP = r"[\s\-.·—－]"

_RULES: list[tuple[str, str, re.Pattern[str]]] = [
    ("email", "[邮箱]", re.compile(r"[\w.+\-]+\s?[@＠]\s?[A-Za-z0-9\-]+(?:\.[A-Za-z0-9\-]+)+", re.ASCII)),
    (
        "url",
        "[网址]",
        re.compile(r"(?:https?|ftp)://[^\s，。；、）)\]\u4e00-\u9fff]+|(?<![\w.])www\.[\w./\-]+", re.I | re.ASCII),
    ),
    (
        "id_number",
        "[证件号]",
        re.compile(
            r"(?<!\d)\d{6}[\s\-]?(?:1[89]|20)\d{2}[\s\-]?\d{4}[\s\-]?\d{3}[\dXxＸｘ](?![\dA-Za-z])"
            r"|(?<!\d)\d{17}[\dXxＸｘ]?(?!\d)|(?<!\d)\d{15}(?!\d)"
            r"|(?<!\d)\d{3,6}[*＊xX×]{4,}[\dXx]{2,4}(?!\d)"
            r"|(?<!\d)\d{4}(?:[ \-]\d{4}){3}(?:[ \-]\d{1,4})?(?!\d)"
        ),
    ),
    ("number", "[编号]", re.compile(rf"(?P<keep>(?:{_NUMBER_LABEL})\s*(?:[:：#.是为]\s*){{0,2}}){_VALUE}")),
    (
        "phone",
        "[电话]",
        re.compile(
            r"(?P<keep>(?:联系电话|电话号码|联系方式|电话|手机号?码?|座机|传真|Tel|Phone|Mobile)\s*[:：是为.]?\s*)[+＋(（]?\d[\d\s\-()（）—－]{4,}\d"
            r"(?:转\d{1,6})?",
            re.I,
        ),
    ),
    (
        "phone",
        "[电话]",
        re.compile(r"(?P<keep>(?:微信|QQ|WeChat)(?:号码?)?\s*[:：是为]?\s*)[A-Za-z\d][\w\-]{4,}", re.I | re.ASCII),
    ),
    (
        "phone",
        "[电话]",
        re.compile(
            rf"(?<![\dA-Za-z])(?:[+＋(（]?(?:00)?86[)）]?{_SEP}?)?1[3-9]\d(?P<a>{_SEP}?)\d{{4}}(?P=a)\d{{4}}(?!\d)"
            rf"|(?<![\dA-Za-z])(?:[+＋]?86{_SEP}?)?1[3-9]\d(?P<b>{_SEP})\d{{3}}(?P=b)?\d{{5}}(?!\d)"
            r"|(?<![\d.])1\s[3-9](?:\s\d){9}(?!\d)"
            r"|(?<![\dA-Za-z])[(（]?0\d{2,3}[)）]?\s?[-—－]?\s?\d{3,4}[-\s]?\d{4}(?:[-—转]\d{1,6})?(?!\d)"
            r"|(?<!\d)[48]00[-\s]?\d{3}[-\s]?\d{4}(?!\d)|(?<!\d)[48]00-\d{4}-\d{3}(?!\d)"
            r"|[〇○零一二三四五六七八九幺壹贰叁肆伍陆柒捌玖]{7,}"
        ),
    ),
    (
        "number",
        "[编号]",
        re.compile(
            r"(?<![\dA-Za-z])(?<!\d\.)(?!(?:19|20|21|18)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?![\dA-Za-z]|-\d))"
            r"(?:[A-Za-z]{0,5}[-_]?\d{7,}[A-Za-z0-9]*(?:[-_]\w+)*|[A-Za-z]{1,5}[-_]?\d{6,}(?:[-_]\w+)*|\d{6,}(?:-\d{2,})+)",
            re.ASCII,
        ),
    ),
]
_BEDS: list[tuple[str, str, re.Pattern[str]]] = [
    (
        "bed",
        "[床号]",
        re.compile(
            r"(?P<keep>(?:病床号|床位号|床号|床位|病床)\s*[:：为是]?\s*)(?:[+加]?[A-Za-z]?\d{1,4}[A-Za-z]?|加\d)(?:[-—]\d{1,3})?(?:号?床|号)?"
        ),
    ),
    (
        "bed",
        "[床号]",
        re.compile(
            r"(?:\d{1,3}(?:病区|楼|病房|室)\s*[-—]?\s*)?(?<![\d.])[+加]?[A-Za-z]?(?:\d{1,4}[-—])?\d{1,4}[A-Za-z]?\s?号?(?:病床|床位|床)(?!数)"
        ),
    ),
    (
        "bed",
        "[床号]",
        re.compile(
            r"第?[一二三四五六七八九十]{1,4}(?:号床|床(?=[的，,。；;患病号]))|加床?[一二三四五六七八九十\d]{1,3}(?:号床|床)"
        ),
    ),
]
_OLD = "90岁以上"
_AGES = [
    re.compile(r"(?<![\d.])0?(?:9\d|1[0-4]\d)\s*(?:周岁|岁)(?!以上)"),
    re.compile(r"(?:九十[一二三四五六七八九]?|一百[零〇]?[一二三四五六七八九十]{0,3})\s*周?岁(?!以上)"),
    re.compile(r"(?P<keep>(?:年龄|Age)\s*[:：是为]?\s*)(?:9\d|1[0-4]\d)(?!\d|岁以上|\.\d|[A-Za-z]?\s?mm)", re.I),
    re.compile(r"(?<![\d.])0?(?:9\d|1[0-4]\d)[\s-]?(?:years?(?:[\s-]old)?|yrs?|y/?o|Y)(?![A-Za-z])"),
]
_COMPILED = [re.compile(pattern) for pattern in _ADDRESSES]


def remove_structured(text: str, removed: Callable[[str], None]) -> str:
    """Every identifier that its form gives away, replaced by a word in brackets; ages over 89 become 90岁以上.

    Args:
        text: any text.
        removed: is told the kind (`audit.KINDS`) of each.
    """
    for kind, placeholder, pattern in _RULES:
        text = _replace(pattern, kind, placeholder, text, removed)
    text = _INSTITUTION.sub(lambda match: _institution(match, removed), text)
    for pattern in _COMPILED:
        text = _replace(pattern, "address", "[地址]", text, removed)
    for kind, placeholder, pattern in _BEDS:
        text = _replace(pattern, kind, placeholder, text, removed)
    for pattern in _AGES:
        text = _replace(pattern, "age", _OLD, text, removed)
    return text


def _replace(pattern: re.Pattern[str], kind: str, placeholder: str, text: str, removed: Callable[[str], None]) -> str:
    def one(match: re.Match[str]) -> str:
        groups = match.groupdict()
        if groups.get("value") is not None:
            keep = match.group()[: match.start("value") - match.start()]
        else:
            keep = groups.get("keep") or ""
        removed(kind)
        return keep + placeholder

    return pattern.sub(one, text)


def _institution(match: re.Match[str], removed: Callable[[str], None]) -> str:
    if _GENERIC.fullmatch(match.group()):
        return match.group()
    removed("institution")
    return "[机构]"
